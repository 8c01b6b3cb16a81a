//! From image files and conversations to pixels and token ids, against the original's way in Python: the same files on the
//! same cores, taking turns. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench data`; makes the peers' environment first (benches/peers/setup.sh).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use imp_stages::preprocess::{AspectRatio, Template, TextTokenizer, Turn, pixels};
use rayon::prelude::*;
use serde_json::Value;

const ROUNDS: usize = 3;
/// Pixels in a row, as for SigLIP-so400m.
const SIZE: usize = 384;
const TOKENIZER: &str = "stages/preprocess/fixtures/qwen1_5_tokenizer.json";

fn main() {
    let setup = Command::new("benches/peers/setup.sh").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "the peers' environment can't be made: see the messages above");
    let python = String::from_utf8(setup.stdout).unwrap().trim().to_string();
    let threads = std::thread::available_parallelism().unwrap().get().to_string();
    let folder = Path::new("target/bench-data");
    peer(&python, &["make".as_ref(), folder.as_os_str()]);
    let (mut ours_rates, mut their_rates) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours_rates.push(ours(folder));
        let args = ["run".as_ref(), folder.as_os_str(), TOKENIZER.as_ref(), threads.as_ref()];
        their_rates.push(peer(&python, &args)["images_per_second"].as_f64().unwrap());
    }
    let (ours, theirs) = (median(ours_rates), median(their_rates));
    println!("{threads} threads; images per second, medians of {ROUNDS}\n");
    println!("imp-flow {ours:8.1}\nPython   {theirs:8.1}\nfaster   {:8.2}x", ours / theirs);
}

/// Images per second, from files to pixels and token ids.
fn ours(folder: &Path) -> f64 {
    let records: Vec<Value> = serde_json::from_slice(&fs::read(folder.join("train.json")).unwrap()).unwrap();
    let tokenizer = TextTokenizer::from_bytes(&fs::read(TOKENIZER).unwrap()).unwrap();
    let began = Instant::now();
    let sizes = records.par_iter().map(|record| {
        let turns: Vec<Turn> = serde_json::from_value(record["conversations"].clone()).unwrap();
        let encoded = Template::Qwen2.encode(&tokenizer, &turns, true, 2560).unwrap();
        let file = fs::read(folder.join("images").join(record["image"].as_str().unwrap())).unwrap();
        encoded.input_ids.len() + pixels::pixels(&file, AspectRatio::Square, SIZE).unwrap().len()
    });
    assert!(sizes.sum::<usize>() > records.len() * 3 * SIZE * SIZE);
    records.len() as f64 / began.elapsed().as_secs_f64()
}

fn peer(python: &str, args: &[&std::ffi::OsStr]) -> Value {
    let output =
        Command::new(python).arg("benches/peers/data.py").args(args).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the peer failed: see its message above");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
