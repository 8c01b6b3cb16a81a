//! Power failures: after each, whatever was not flushed is lost, no receipt names what is not there, and the next run completes with
//! the same results.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::{LOGS, Op, model::Disk};
use crate::store::{
    Digest, Manifest, Product, Provenance, Receipt, RunRecord, RunState, Store, StoreError, TreeRef, now,
};

/// The files of a stage's output. More than the store flushes one by one.
fn files(name: &str, input: Option<Digest>) -> Vec<(String, String)> {
    let count = if name == "many" { 34 } else { 3 };
    (0..count)
        .map(|number| (format!("sub{}/{number}", number % 2), format!("{name} {input:?} {}", number / 2)))
        .collect()
}

pub(super) fn manifest(name: &str, input: Option<Digest>) -> Manifest {
    Manifest {
        kind: "k".into(),
        version: 1,
        seed: 0,
        config: serde_json::json!({ "name": name }),
        sources: BTreeMap::new(),
        inputs: input.into_iter().map(|tree| ("input".to_string(), tree)).collect(),
    }
}

/// Does what a run does: finds a result, or makes it. Returns its content.
fn stage(store: &Store, name: &str, input: Option<Digest>) -> Result<TreeRef, StoreError> {
    let manifest = manifest(name, input);
    let key = manifest.key();
    if let Some(tree) = input {
        assert!(store.input_folder(tree)?.into_parts().0.is_some(), "{name}: its input is gone");
    }
    let _guard = store.guard()?;
    if let Some((hit, tree)) = store.find(key, None)? {
        let folder = tree.into_parts().0;
        assert!(folder.is_some(), "{name}: a receipt without its result");
        return Ok(hit.output);
    }
    let work = store.work(key);
    store.create_work(&work)?;
    // As the process of a stage does: what a killed one has left may be half of a file.
    if work.out().exists() {
        super::remove_dir_all(&work.out()).unwrap();
    }
    for (path, text) in files(name, input) {
        written(&work.out().join(path), text.as_bytes());
    }
    written(&work.log(), name.as_bytes());
    let (output, _) = store.add_folder(&work.out())?;
    let product = Product { log: store.keep_log(&work.log())?, ..Product::of(output) };
    let provenance = Provenance {
        manifest,
        pipeline: "p".into(),
        stage: name.into(),
        reason: String::new(),
        previous: None,
        made_by: String::new(),
    };
    store.write_receipt(&Receipt::new(provenance, product))?;
    work.clear()?;
    Ok(output)
}

/// Writes a file as a stage does, which flushes nothing.
pub(super) fn written(path: &Path, bytes: &[u8]) {
    super::create_dir_all(path.parent().unwrap()).unwrap();
    super::write(&fs::File::create(path).unwrap(), path, bytes).unwrap();
}

/// Runs three stages, checks what is in their folders, and records the run.
fn run(store: &Store) -> Vec<TreeRef> {
    let first = stage(store, "first", None).unwrap();
    let many = stage(store, "many", Some(first.digest)).unwrap();
    let last = stage(store, "last", Some(many.digest)).unwrap();
    for (name, input, tree) in [("first", None, first), ("many", Some(first), many), ("last", Some(many), last)] {
        let folder = store.input_folder(tree.digest).unwrap().into_parts().0.unwrap();
        for (path, text) in files(name, input.map(|input| input.digest)) {
            assert_eq!(fs::read_to_string(folder.join(&path)).unwrap(), text, "{name} {path}");
        }
    }
    let number = store.next_run().unwrap();
    store.write_run(&record(number)).unwrap();
    vec![first, many, last]
}

fn record(number: u64) -> RunRecord {
    RunRecord {
        id: format!("run{number}"),
        name: None,
        pipeline: "p".into(),
        file: PathBuf::new(),
        overrides: Vec::new(),
        sweep: false,
        number,
        started: now(),
        seconds: 0.0,
        ending: RunState::Done,
        host: String::new(),
        made_by: String::new(),
        origin: None,
        document: String::new(),
        sources: BTreeMap::new(),
        points: Vec::new(),
    }
}

/// Lets the power fail after each operation of `work` on the store that `prepare` leaves. After each failure a run completes, and
/// what is damaged then is so once.
fn survives(prepare: impl Fn(&Store), work: impl Fn(&Store)) {
    let kept = folder();
    let root = kept.path().canonicalize().unwrap();
    let store = Store::open(&root.join("cache")).unwrap();
    prepare(&store);
    let start = Disk::of(&root);
    LOGS.lock().unwrap().push((root.clone(), Vec::new()));
    work(&store);
    let ops = {
        let mut logs = LOGS.lock().unwrap();
        let at = logs.iter().position(|(of, _)| *of == root).unwrap();
        logs.swap_remove(at).1
    };
    assert!(ops.len() > 5, "{ops:?}");
    let expected = run(&Store::open(&folder().path().join("cache")).unwrap());
    let mut disk = start;
    let mut failures = vec![(0, disk.clone())];
    for (at, op) in ops.iter().enumerate() {
        disk.apply(op);
        failures.push((at + 1, disk.clone()));
    }
    // Most of the time goes by in waiting for the clock of the file system.
    let at_once = failures.len().div_ceil(16);
    std::thread::scope(|scope| {
        for part in failures.chunks(at_once) {
            scope.spawn(|| part.iter().for_each(|(count, disk)| completes(&root, &ops[..*count], disk, &expected)));
        }
    });
}

/// Lets a run complete on what the power failure after `ops` has left.
fn completes(root: &Path, ops: &[Op], disk: &Disk, expected: &[TreeRef]) {
    let when = format!("after {} operations, the last of them {:?}", ops.len(), ops.last());
    let after = folder();
    disk.write_flushed(root, after.path());
    let store = Store::open(&after.path().join("cache")).unwrap();
    // A receipt is written last.
    for (_, receipt) in store.receipts() {
        let mut files = store.tree(receipt.output.digest).unwrap_or_else(|error| panic!("{when}: {error}"));
        files.retain(|file| !store.is_whole(file.digest));
        assert!(files.is_empty(), "{when}: {files:?}");
    }
    assert_eq!(run(&store), expected, "{when}");
    store.verify(|_, _| ()).unwrap();
    let again = store.verify(|_, _| ()).unwrap();
    assert!(again.is_clean(), "{when}: {again:?}");
    assert_eq!(run(&store), expected, "{when}");
}

/// A folder in memory, where the system has one: flushing is recorded, not waited for.
pub(super) fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

#[test]
fn in_a_first_run() {
    survives(|_| (), |store| drop(run(store)));
}

#[test]
fn in_a_run_on_a_new_cache() {
    survives(
        |store| fs::remove_dir_all(store.root.parent().unwrap().join("cache")).unwrap(),
        |store| drop(run(&Store::open(&store.root).unwrap())),
    );
}

#[test]
fn in_garbage_collection() {
    survives(
        |store| {
            run(store);
            stage(store, "unused", None).unwrap();
        },
        |store| {
            store.gc(0, false).unwrap();
        },
    );
}

#[test]
fn while_a_changed_folder_is_restored() {
    survives(
        |store| {
            let trees = run(store);
            let folder = store.tree_path(trees[1].digest);
            fs::remove_file(folder.join("sub0/2")).unwrap();
            fs::write(folder.join("new"), "").unwrap();
        },
        |store| drop(run(store)),
    );
}

#[test]
fn while_a_tree_is_made_again() {
    survives(
        |store| drop(run(store)),
        |store| {
            let input = stage(store, "first", None).unwrap().digest;
            store.remove_receipt(manifest("many", Some(input)).key()).unwrap();
            run(store);
        },
    );
}

#[test]
fn in_verify_of_a_changed_store() {
    survives(
        |store| {
            // Two, so that there is enough to do also where nothing can have been made from the first meanwhile.
            for tree in &run(store)[..2] {
                fs::write(store.tree_path(tree.digest).join("new"), "").unwrap();
            }
        },
        |store| drop(store.verify(|_, _| ()).unwrap()),
    );
}

/// What another machine made: each object arrives by itself.
#[test]
fn while_results_of_another_store_are_taken_in() {
    let elsewhere = folder();
    let other = Store::open(&elsewhere.path().join("cache")).unwrap();
    run(&other);
    let results: Vec<_> = other.receipts().collect();
    survives(
        |_| (),
        |store| {
            for (key, receipt) in &results {
                let bytes = receipt.for_others().unwrap();
                let receipt = Receipt::from_elsewhere(&bytes, *key, Some(&receipt.manifest)).unwrap();
                let files = other.tree(receipt.output.digest).unwrap();
                for need in receipt.needs(&files) {
                    let mut incoming = store.receive(need).unwrap();
                    assert!(incoming.add(&fs::read(other.object(need.digest)).unwrap()).unwrap());
                    assert_eq!(incoming.finish(store).unwrap(), crate::store::Arrival::Stored);
                }
                assert!(store.take_in(&receipt, &files, "file:///elsewhere").unwrap());
            }
        },
    );
}
