//! Whole training stages of imp-flow against PyTorch, transformers and peft: the same models, images and texts, in
//! alternating processes on the same cores. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench stages [-- SIZE|PRECISION...]`, all by default: `small` has 28M weights, `wide` two blocks of Phi-2's width; f32 and
//! bf16. Creates the peers' environment first (benches/peers/setup.sh).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use serde_json::Value;

const ROUNDS: usize = 3;
const STAGES: [&str; 2] = ["pretrain", "finetune"];
const PRECISIONS: [&str; 2] = ["f32", "bf16"];
/// Sizes, with what they change in the pipeline.
const SIZES: [(&str, &[&str]); 2] = [
    ("small", &[]),
    (
        "wide",
        &[
            "stages.phi.model.hidden_size=2560",
            "stages.phi.model.layers=2",
            "stages.phi.model.heads=32",
            "stages.shapes.images=32",
        ],
    ),
];

fn main() {
    let setup = Command::new("benches/peers/setup.sh").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "can't create the peers' environment: see the messages above");
    let python = String::from_utf8(setup.stdout).unwrap().trim().to_string();
    let threads = std::thread::available_parallelism().unwrap().get().to_string();
    let asked: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let known = |asked: &str| PRECISIONS.contains(&asked) || SIZES.iter().any(|(size, _)| *size == asked);
    assert!(asked.iter().all(|asked| known(asked)), "give `small` or `wide`, `f32` or `bf16`");
    // What is not restricted is measured whole.
    let chosen = |name: &str, all: &[&str]| {
        asked.iter().any(|asked| asked == name) || !asked.iter().any(|asked| all.contains(&&**asked))
    };
    let sizes: Vec<&str> = SIZES.iter().map(|(size, _)| *size).collect();
    println!("{threads} threads; examples per second of the training loop, medians of {ROUNDS} processes each\n");
    for (size, changes) in SIZES.iter().filter(|(size, _)| chosen(size, &sizes)) {
        for precision in PRECISIONS.iter().filter(|precision| chosen(precision, &PRECISIONS)) {
            println!("{size}, {precision}");
            compare(precision, changes, &python, &threads);
        }
    }
}

fn compare(precision: &str, changes: &[&str], python: &str, threads: &str) {
    let root = Path::new("target/bench-stages");
    let mut rates = vec![(Vec::new(), Vec::new()); STAGES.len()];
    for _ in 0..ROUNDS {
        let results = ours(root, precision, changes);
        for (stage, (ours, theirs)) in STAGES.iter().zip(&mut rates) {
            let figures = results["stages"].as_array().unwrap().iter().find(|found| found["name"] == *stage).unwrap();
            ours.push(figures["results"]["examples_per_second"].as_f64().unwrap());
            theirs.push(peer(python, [stage, threads, precision], &root.join("artifacts/bench")));
        }
    }
    println!("{:10} {:>10} {:>10} {:>7}", "", "imp-flow", "PyTorch", "faster");
    for (stage, (ours, theirs)) in STAGES.iter().zip(rates) {
        let (ours, theirs) = (median(ours), median(theirs));
        println!("{stage:10} {ours:10.1} {theirs:10.1} {:6.2}x", ours / theirs);
    }
}

/// Runs the pipeline with an empty cache. Returns its record.
fn ours(root: &Path, precision: &str, changes: &[&str]) -> Value {
    let _ = std::fs::remove_dir_all(root);
    std::fs::create_dir_all(root).unwrap();
    let began = Instant::now();
    let status = Command::new(env!("CARGO_BIN_EXE_imp-flow"))
        .args(["run", "benches/stages/pipeline.toml", "-q"])
        .args(STAGES.iter().flat_map(|stage| ["--set".into(), format!("stages.{stage}.precision={precision}")]))
        .args(changes.iter().flat_map(|change| ["--set", change]))
        .arg("--cache")
        .arg(root.join("cache"))
        .arg("--artifacts")
        .arg(root.join("artifacts"))
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success(), "the pipeline failed");
    println!("imp-flow: {:.1} s in all", began.elapsed().as_secs_f64());
    serde_json::from_slice(&std::fs::read(root.join("artifacts/bench/run.json")).unwrap()).unwrap()
}

fn peer(python: &str, [stage, threads, precision]: [&str; 3], folder: &Path) -> f64 {
    let began = Instant::now();
    let output = Command::new(python)
        .args(["benches/peers/finetune.py", stage])
        .arg(folder)
        .args([threads, precision])
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "the peer failed: see its message above");
    println!("PyTorch, {stage}: {:.1} s in all", began.elapsed().as_secs_f64());
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    figures["examples_per_second"].as_f64().unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
