//! Runs and garbage collections at the same time, in every order of their operations with few interruptions: no result is lost
//! that a run uses, and each is made once, or again after garbage collection has removed it. One interruption is tried everywhere
//! in `cargo test`: a thread goes on until it ends or waits for a lock, but for one place. Two are tried in a sample, and
//! everywhere with `IMP_FLOW_INTERRUPTIONS=2`, which takes minutes.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use rayon::prelude::*;

use super::{
    tests::{folder, manifest, written},
    turns::{Choice, Turns},
};
use crate::store::{Digest, Manifest, Product, Provenance, Receipt, Store, TreeRef};

/// What runs make: a stage, and one that reads it. One of their files is the same.
const STAGES: [&str; 2] = ["first", "second"];

/// The results of a run that was there before, which nobody uses any more.
const OLD: &str = "old";

fn receipt(manifest: Manifest, output: TreeRef) -> Receipt {
    let stage = "s".into();
    let provenance = Provenance {
        manifest,
        pipeline: "p".into(),
        stage,
        reason: String::new(),
        previous: None,
        made_by: String::new(),
    };
    Receipt::new(provenance, Product::of(output))
}

/// What the process of a stage and `store_result` do.
fn make(store: &Store, manifest: Manifest, name: &str) -> TreeRef {
    let work = store.work(manifest.key());
    store.create_work(&work).unwrap();
    written(&work.out().join("own"), name.as_bytes());
    written(&work.out().join("shared"), b"the same in all");
    let _guard = store.guard().unwrap();
    let (output, mended) = store.add_folder(&work.out()).unwrap();
    assert_eq!(mended, None);
    store.write_receipt(&receipt(manifest, output)).unwrap();
    work.clear().unwrap();
    output
}

/// What a run does with a stage, as `scheduler/run.rs` and `step.rs`. Counts in `made` what it makes.
fn stage(
    store: &Store,
    lease: &mut crate::store::Lease,
    name: &str,
    input: Option<Digest>,
    made: &AtomicUsize,
) -> TreeRef {
    let manifest = manifest(name, input);
    let key = manifest.key();
    let find = || {
        let (hit, tree) = store.find(key, None).unwrap()?;
        let (folder, mended) = tree.into_parts();
        assert_eq!(mended, None, "{name}: nobody has changed anything");
        assert!(folder.is_some(), "{name}: a receipt without its result");
        Some(hit.output)
    };
    loop {
        {
            let _guard = store.guard().unwrap();
            let hit = find();
            lease.add(&[key], &hit.map(|output| output.digest).into_iter().collect::<Vec<_>>()).unwrap();
            if let Some(output) = hit {
                return output;
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut waited = false;
        let _lock = runtime.block_on(store.lock(key, || waited = true)).unwrap();
        if let Some(output) = find() {
            return output;
        }
        if waited {
            continue;
        }
        for tree in manifest.inputs.values() {
            assert!(store.input_folder(*tree).unwrap().into_parts().0.is_some(), "{name}: its input is gone");
        }
        made.fetch_add(1, SeqCst);
        return make(store, manifest, name);
    }
}

/// A run of both stages, with its lease.
fn run(store: &Store, id: &str, made: &AtomicUsize) {
    let mut lease = store.lease(id).unwrap();
    let mut input = None;
    for name in STAGES {
        input = Some(stage(store, &mut lease, name, input, made).digest);
    }
    let folder = store.input_folder(input.unwrap()).unwrap().into_parts().0.unwrap();
    assert_eq!(fs::read_to_string(folder.join("own")).unwrap(), STAGES[1]);
}

/// What happens at the same time: runs, and then garbage collections.
#[derive(Debug, Clone, Copy)]
struct Threads {
    runs: usize,
    collections: usize,
}

/// Lets runs and garbage collections take their turns, and looks at what they leave.
fn interleave(threads: Threads, prefix: &[usize]) -> Vec<Choice> {
    let root = folder();
    let store = Store::open(&root.path().join("cache")).unwrap();
    make(&store, manifest(OLD, None), OLD);
    let count = threads.runs + threads.collections;
    let (turns, made, removed) = (Turns::new(count, prefix), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |thread: usize| {
        if thread < threads.runs {
            run(&store, &format!("run{thread}"), &made);
        } else {
            removed.fetch_add(store.gc(0, false).unwrap().stages, SeqCst);
        }
    };
    let failed = std::thread::scope(|scope| {
        let (turns, work) = (&turns, &work);
        let start = |thread: usize| {
            scope.spawn(move || {
                // Parallel loops of this thread stay on it.
                let _own = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build();
                turns.take_part(thread, || work(thread));
            })
        };
        let started: Vec<_> = (0..count).map(start).collect();
        started.into_iter().filter_map(|thread| thread.join().err()).count() > 0
    });
    let (choices, ended) = turns.result();
    let order: Vec<usize> = choices.iter().map(|choice| choice.chosen).collect();
    assert!(ended && !failed, "a run fails or waits for ever in this order: {order:?}");
    let (made, removed) = (made.into_inner(), removed.into_inner());
    assert!(made < STAGES.len() + removed && removed >= 1, "made {made}, removed {removed}: {order:?}");
    check(&store, &order);
    choices
}

/// No receipt lacks its objects, a run completes, and there is nothing to put right.
fn check(store: &Store, order: &[usize]) {
    for (_, receipt) in store.receipts() {
        let files = store.tree(receipt.output.digest).unwrap_or_else(|error| panic!("{error}: {order:?}"));
        assert!(files.iter().all(|file| store.is_whole(file.digest)), "{order:?}");
    }
    let after = catch_unwind(AssertUnwindSafe(|| run(store, "after", &AtomicUsize::new(0))));
    assert!(after.is_ok(), "the next run fails: {order:?}");
    assert!(store.verify(|_, _| ()).unwrap().is_clean(), "{order:?}");
}

/// Tries all orders within `bounds`. Returns how many there are.
fn explore(threads: Threads, bounds: Bounds) -> usize {
    let (mut tried, mut open) = (0, vec![Vec::new()]);
    while !open.is_empty() {
        tried += open.len();
        let next = |prefix: &Vec<usize>| alternatives(threads, prefix, &interleave(threads, prefix), bounds);
        open = open.par_iter().flat_map_iter(next).collect();
    }
    tried
}

/// The orders that differ from this one in one choice after `prefix`.
fn alternatives(threads: Threads, prefix: &[usize], choices: &[Choice], bounds: Bounds) -> Vec<Vec<usize>> {
    let (mut found, mut order, mut used) = (Vec::new(), Vec::new(), 0);
    for (at, choice) in choices.iter().enumerate() {
        for other in choice.possible.iter().filter(|other| at >= prefix.len() && **other != choice.chosen) {
            let next = [&order[..], &[*other]].concat();
            // All runs do the same, and all garbage collections: the first of each is the one that begins.
            let first = |is: fn(usize, usize) -> bool| next.iter().copied().find(|thread| is(*thread, threads.runs));
            let is_new = first(|thread, runs| thread < runs).is_none_or(|thread| thread == 0)
                && first(|thread, runs| thread >= runs).is_none_or(|thread| thread == threads.runs);
            let tried = !choice.interrupts(*other) || used < bounds.all || used == bounds.all && bounds.samples(&next);
            if is_new && tried {
                found.push(next);
            }
        }
        used += usize::from(choice.interrupts(choice.chosen));
        order.push(choice.chosen);
    }
    found
}

/// Which orders are tried.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// All with as many interruptions.
    all: usize,
    /// One of so many with one more.
    one_of: u32,
}

impl Bounds {
    fn samples(self, order: &[usize]) -> bool {
        let bytes: Vec<u8> = order.iter().map(|thread| *thread as u8).collect();
        let [first, second, third, ..] = Digest::of(&bytes).bytes();
        u32::from_le_bytes([first, second, third, 0]).is_multiple_of(self.one_of)
    }
}

fn all_orders_are_safe(threads: Threads, one_of: u32) {
    let all = std::env::var("IMP_FLOW_INTERRUPTIONS").map_or(1, |text| text.parse().unwrap());
    let tried = explore(threads, Bounds { all, one_of: one_of.pow(all as u32) });
    assert!(tried > 200, "only {tried} orders: the operations are not seen");
}

#[test]
fn of_two_runs_and_a_garbage_collection() {
    all_orders_are_safe(Threads { runs: 2, collections: 1 }, 64);
}

/// What the first collection takes away may be missing in the second: the lease of a run, or a lock.
#[test]
fn of_a_run_and_two_garbage_collections() {
    all_orders_are_safe(Threads { runs: 1, collections: 2 }, 16);
}
