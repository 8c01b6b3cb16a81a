//! From image files and conversations to pixels and token ids, against the original's way in Python: the same files on the
//! same cores, taking turns. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench data`; makes the peers' environment first (benches/peers/setup.sh).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::{
    ffi::OsStr,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use imp_stages::preprocess::{AspectRatio, Template, TextTokenizer, Turn, pixels};
use rayon::prelude::*;
use serde_json::{Value, json};

const ROUNDS: usize = 5;
/// Pixels in a row, as for SigLIP-so400m.
const SIZE: usize = 384;
const TOKENIZER: &str = "stages/preprocess/fixtures/qwen1_5_tokenizer.json";
/// As the runner starts its stages.
const KEEP_MEMORY: [(&str, &str); 3] =
    [("MALLOC_MMAP_MAX_", "0"), ("MALLOC_TRIM_THRESHOLD_", "1000000000000"), ("MALLOC_TOP_PAD_", "67108864")];

fn main() {
    let folder = Path::new("target/bench-data");
    if std::env::args().nth(1).is_some_and(|argument| argument == "worker") {
        println!("{}", json!({"images_per_second": ours(folder)}));
        return;
    }
    let setup = Command::new("benches/peers/setup.sh").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "the peers' environment can't be made: see the messages above");
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

/// Images per second, from files to pixels and token ids.
fn ours(folder: &Path) -> f64 {
    let records: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("train.json")).unwrap()).unwrap();
    let tokenizer = TextTokenizer::from_bytes(&fs::read(TOKENIZER).unwrap()).unwrap();
    let prepare = |record: &Value| {
        let turns: Vec<Turn> = serde_json::from_value(record["conversations"].clone()).unwrap();
        let encoded = Template::Qwen2.encode(&tokenizer, &turns, true, 2560).unwrap();
        let file = fs::read(folder.join("images").join(record["image"].as_str().unwrap())).unwrap();
        encoded.input_ids.len() + pixels::pixels(&file, AspectRatio::Square, SIZE).unwrap().len()
    };
    // As the peer: starting is not counted.
    assert!(records[..16].par_iter().map(prepare).sum::<usize>() > 0);
    let began = Instant::now();
    let sizes: usize = records.par_iter().map(prepare).sum();
    let seconds = began.elapsed().as_secs_f64();
    assert!(sizes > records.len() * 3 * SIZE * SIZE);
    records.len() as f64 / seconds
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
