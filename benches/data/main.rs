//! Data preparation, from image files and conversations to pixels and token ids, against the original's method in
//! Python: the same files on the same cores, alternating. Also the time to open 665,000 records, and the savings of
//! cached features. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench data`; creates the peers' environment first (benches/peers/setup.sh), which `-- open` and
//! `-- features` don't need.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use imp_model::config::{Encoder, VisionConfig};
use imp_stages::{
    data::records::RecordSet,
    image::pixels::{AspectRatio, Recipe},
    text::{conversation::Turn, template::Template, tokenizer::TextTokenizer},
};
use rayon::prelude::*;
use serde_json::{Value, json};

const ROUNDS: usize = 5;
/// Width and height of the images for SigLIP-so400m.
const SIZE: usize = 384;
const RECORDS: &str = "target/bench-data/open";
const TOKENIZER: &str = "stages/text/fixtures/qwen1_5_tokenizer.json";
/// Allocator settings that the runner gives to its stages.
const KEEP_MEMORY: [(&str, &str); 3] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000"), ("MALLOC_TOP_PAD_", "67108864")];

fn main() {
    let folder = Path::new("target/bench-data");
    match std::env::args().nth(1).as_deref() {
        Some("worker") => println!("{}", json!({"images_per_second": ours(folder)})),
        Some("open-worker") => println!("{}", open_records()),
        Some("open") => open(),
        Some("features") => features(),
        _ => against_python(folder),
    }
}

fn against_python(folder: &Path) {
    let setup = Command::new("benches/peers/setup.sh").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "can't create the peers' environment: see the messages above");
    let python = String::from_utf8(setup.stdout).unwrap().trim().to_string();
    let threads = std::thread::available_parallelism().unwrap().get().to_string();
    let this = std::env::current_exe().unwrap();
    let script = |args: &[&OsStr]| result(Command::new(&python).arg("benches/peers/data.py").args(args));
    script(&["make".as_ref(), folder.as_os_str()]);
    let rate = |figures: Value| figures["images_per_second"].as_f64().unwrap();
    let (mut ours, mut theirs, mut kept) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let run = ["run".as_ref(), folder.as_os_str(), TOKENIZER.as_ref(), threads.as_ref()];
        ours.push(rate(result(Command::new(&this).arg("worker").envs(KEEP_MEMORY))));
        theirs.push(rate(script(&run)));
        kept.push(rate(result(Command::new(&python).arg("benches/peers/data.py").args(run).envs(KEEP_MEMORY))));
    }
    let (ours, theirs, kept) = (median(ours), median(theirs), median(kept));
    println!("{threads} threads; images per second, medians of {ROUNDS}\n");
    println!("imp-flow                    {ours:8.1}");
    println!("Python                      {theirs:8.1}   {:5.2}x", ours / theirs);
    println!("Python, with our allocator  {kept:8.1}   {:5.2}x", ours / kept);
}

/// Our rate in images per second, from files to pixels and token ids.
fn ours(folder: &Path) -> f64 {
    let records: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("train.json")).unwrap()).unwrap();
    let tokenizer = TextTokenizer::from_bytes(&fs::read(TOKENIZER).unwrap()).unwrap();
    let pixels = Recipe::new(AspectRatio::Square, &VisionConfig::new(Encoder::Siglip, 16, 1, 1, SIZE));
    let prepare = |record: &Value| {
        let turns: Vec<Turn> = serde_json::from_value(record["conversations"].clone()).unwrap();
        let encoded = Template::Qwen2.encode(&tokenizer, &turns, true, 2560).unwrap();
        let file = fs::read(folder.join("images").join(record["image"].as_str().unwrap())).unwrap();
        encoded.input_ids.len() + pixels.pixels(&file).unwrap().len()
    };
    // As in the peer, starting up is not measured.
    assert!(records[..16].par_iter().map(prepare).sum::<usize>() > 0);
    let began = Instant::now();
    let sizes: usize = records.par_iter().map(prepare).sum();
    let seconds = began.elapsed().as_secs_f64();
    assert!(sizes > records.len() * 3 * SIZE * SIZE);
    records.len() as f64 / seconds
}

/// Opens a set of short records, as many as in LLaVA-1.5's, in separate processes.
fn open() {
    let root = Path::new(RECORDS);
    std::fs::create_dir_all(root.join("data")).unwrap();
    let turns = json!([{"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "Yes"}]);
    let records: Vec<Value> = (0..665_298).map(|id| json!({"id": id.to_string(), "conversations": turns})).collect();
    fs::write(root.join("data/train.json"), serde_json::to_vec(&records).unwrap()).unwrap();
    let stages = run("benches/data/open.toml", root);
    println!("{} records", stages["records"]["results"]["records"]);
    let this = std::env::current_exe().unwrap();
    let figures: Vec<Value> = (0..9).map(|_| result(Command::new(&this).arg("open-worker"))).collect();
    for name in ["open_ms", "lengths_ms", "memory_mb"] {
        println!("{name:12} {:8.2}", median(figures.iter().map(|figures| figures[name].as_f64().unwrap()).collect()));
    }
}

fn open_records() -> Value {
    let milliseconds = |began: Instant| began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    let set = RecordSet::open(&Path::new(RECORDS).join("artifacts/open/records")).unwrap();
    let open = milliseconds(began);
    // The figures that training needs before its first step.
    let longest = set.modality_lengths().max().unwrap() + set.lengths().max().unwrap() as i64;
    assert!(longest > 0);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")).unwrap();
    json!({"open_ms": open, "lengths_ms": milliseconds(began), "memory_mb": peak.parse::<f64>().unwrap() / 1e3})
}

/// Pretraining and finetuning with features computed in each stage, and with cached features.
fn features() {
    let root = Path::new("target/bench-data/features");
    let stages = run("benches/data/features.toml", root);
    for name in ["captions", "captions_seen", "pretrain", "pretrain_seen", "finetune", "finetune_seen"] {
        let stage = &stages[name];
        println!("{name:16} {:8.1} s {:>10} bytes", stage["seconds"].as_f64().unwrap(), stage["output"]["bytes"]);
    }
    for name in ["pretrain", "finetune"] {
        let [usual, seen] =
            [name.to_string(), format!("{name}_seen")].map(|name| stages[&name]["output"]["digest"].clone());
        assert_eq!(usual, seen, "{name} must give the same weights");
    }
}

/// Runs a pipeline with an empty cache. Returns the record of each stage by name.
fn run(pipeline: &str, root: &Path) -> BTreeMap<String, Value> {
    for old in ["cache", "artifacts"] {
        let _ = fs::remove_dir_all(root.join(old));
    }
    fs::create_dir_all(root).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_imp-flow"));
    command
        .args(["run", pipeline, "-q", "--cache"])
        .arg(root.join("cache"))
        .arg("--artifacts")
        .arg(root.join("artifacts"));
    assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{pipeline} failed");
    let name = Path::new(pipeline).file_stem().unwrap();
    let record: Value =
        serde_json::from_slice(&fs::read(root.join("artifacts").join(name).join("run.json")).unwrap()).unwrap();
    let stages = record["stages"].as_array().unwrap().iter();
    stages.map(|stage| (stage["name"].as_str().unwrap().to_string(), stage.clone())).collect()
}

fn result(command: &mut Command) -> Value {
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?} failed: see its message above");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
