//! `imp-model` against PyTorch, transformers and peft: the same work on the same machine with the same number of
//! threads, in alternating repetitions. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench model [-- CASE...]` (`block`, or just `block-bf16`); creates the peers' environment first (benches/peers/setup.sh).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

mod ours;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

/// The cases, each with its number of repetitions.
const CASES: [(&str, usize); 6] =
    [("block", 9), ("nodrop", 9), ("train", 9), ("decode", 5), ("prefill", 25), (LARGE, 3)];
/// Writes 6 GB, so it runs only if requested.
const LARGE: &str = "open";

/// Allocator settings that the runner gives to its stages.
const KEEP_MEMORY: [(&str, &str); 3] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000"), ("MALLOC_TOP_PAD_", "67108864")];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [worker, case, threads] = arguments.as_slice()
        && worker == "worker"
    {
        return ours::serve(case, threads.parse().unwrap());
    }
    let threads = std::thread::available_parallelism().unwrap().get().to_string();
    let setup = Command::new("benches/peers/setup.sh").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "can't create the peers' environment: see the messages above");
    let python = String::from_utf8(setup.stdout).unwrap().trim().to_string();
    println!("{threads} threads; medians of alternating repetitions, and the fastest of each, which other work on the");
    println!("machine delays least; memory over that of the empty process\n");
    println!("{:12} {:>29}   {:>29}   {:>17}", "", "median, ms", "fastest, ms", "MB");
    let [one, other] = ["imp-model", "PyTorch"];
    println!("{:12} {one:>10} {other:>9} faster   {one:>10} {other:>9} faster   {one:>9} {other:>7}", "case");
    let this = std::env::current_exe().unwrap();
    for (case, repetitions) in CASES {
        let named = |name: &str| arguments.iter().any(|argument| argument == name);
        let all = named(case) || arguments.is_empty() && case != LARGE;
        for (ours, theirs) in ours::variants(case).iter().filter(|(ours, _)| all || named(ours)) {
            let mut worker = Worker::start(Command::new(&this).args(["worker", ours, &threads]).envs(KEEP_MEMORY));
            // Started after ours, which writes the files that both open.
            let mut theirs = Worker::start(Command::new(&python).args(["benches/peers/model.py", theirs, &threads]));
            let times: Vec<(f64, f64)> = (0..repetitions).map(|_| (worker.repeat(), theirs.repeat())).collect();
            let (mut mine, mut peer) = times.into_iter().unzip::<f64, f64, Vec<f64>, Vec<f64>>();
            print!("{ours:12} ");
            for at in [repetitions / 2, 0] {
                let [mine, peer] = [&mut mine, &mut peer].map(|times| sorted(times)[at]);
                print!("{mine:10.0} {peer:9.0} {:5.2}x   ", peer / mine);
            }
            println!("{:9.0} {:7.0}", worker.memory(), theirs.memory());
        }
    }
}

fn sorted(values: &mut [f64]) -> &[f64] {
    values.sort_by(f64::total_cmp);
    values
}

/// A process that repeats its work on demand.
struct Worker {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Worker {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a worker starts");
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut worker = Self { child, input, output };
        assert_eq!(worker.line(), "ready");
        worker
    }

    /// Runs one repetition. Returns milliseconds.
    fn repeat(&mut self) -> f64 {
        writeln!(self.input.as_mut().unwrap()).unwrap();
        self.line().parse().expect("a time")
    }

    /// Ends the process. Returns its peak memory in MB.
    fn memory(mut self) -> f64 {
        self.input = None;
        let memory = self.line().parse().expect("a number of MB");
        self.child.wait().unwrap();
        memory
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_string()
    }
}
