//! The GPU against the host, against itself and against PyTorch. `benches/gpu/run.sh` runs it, part by part, and says what
//! each is for; see docs/GPU.md.
//!
//! Results are lines of JSON, which are appended to the file that `IMP_FLOW_RESULTS` names, and printed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, missing_docs)]

mod cases;
mod compare;
mod files;
mod machine;
mod products;
mod profile;
mod resume;
mod sizes;
mod table;
mod worker;

use std::io::Write;

use serde_json::Value;
use sizes::Sizes;

/// The name of our side.
const OURS: &str = "imp-flow";
const USAGE: &str = "gpu [--tiny] machine COMMIT DATE | products | resume PROGRAM | models | serve CASE | speed CASE... | \
                     profile CASE... | summary FIRST_LINE | table DOCUMENT RESULTS...";

fn main() {
    // Cargo passes `--bench`.
    let mut arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let tiny = arguments.iter().position(|argument| argument == "--tiny").map(|at| arguments.remove(at)).is_some();
    let sizes = Sizes::new(tiny);
    let (verb, rest) = arguments.split_first().expect(USAGE);
    let ok = match (verb.as_str(), rest) {
        ("machine", [commit, date]) => machine::tell(commit, date),
        ("products", []) => products::compare(&sizes),
        ("resume", [program]) => resume::compare(program, &sizes),
        // The card is opened, so that the driver compiles the kernels.
        ("models", []) => {
            card();
            files::write(&sizes)
        }
        ("serve", [case]) => worker::serve(case, &sizes),
        ("speed", cases) => compare::run(cases, &sizes),
        ("profile", cases) => profile::run(cases, &sizes),
        ("summary", [first]) => table::summary(first.parse().unwrap()),
        ("table", [document, results @ ..]) => table::write(document, results),
        _ => panic!("{USAGE}"),
    };
    std::process::exit(i32::from(!ok));
}

/// Writes a result.
fn result(line: &Value) {
    println!("{line}");
    if let Some(path) = std::env::var_os("IMP_FLOW_RESULTS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        // In one write, so that a line is whole whenever the process is killed.
        file.unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The GPU, with the precision in which the benchmarks compute.
fn card() -> imp_model::tensor::Device {
    imp_model::tensor::Device::open(0).unwrap_or_else(|error| panic!("{error}"))
}
