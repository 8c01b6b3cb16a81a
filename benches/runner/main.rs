//! The runner alone, measured as whole processes: up-to-date pipelines against ninja, doit, Luigi, Snakemake and DVC,
//! first runs of trivial stages, and artifacts of many files. See docs/BENCHMARKS.md.
//!
//! `cargo bench --bench runner`; creates the peers' environment first (benches/peers/setup.sh runner).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, missing_docs)]

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_imp-flow");
const ROUNDS: usize = 7;

fn main() {
    let setup =
        Command::new("benches/peers/setup.sh").arg("runner").stderr(Stdio::inherit()).output().expect("sh runs");
    assert!(setup.status.success(), "can't create the peers' environment: see the messages above");
    let python = String::from_utf8(setup.stdout).unwrap().trim().to_string();
    peers(&python, 100, &["ninja", "doit", "luigi", "snakemake", "dvc"]);
    peers(&python, 1000, &["ninja", "doit", "luigi"]);
    peers(&python, 10_000, &["ninja"]);
    own();
    many_files();
}

/// First and up-to-date runs of the same pipeline in different tools.
fn peers(python: &str, stages: usize, tools: &[&str]) {
    let output = Command::new(python)
        .args(["benches/peers/runner.py", PROGRAM, &stages.to_string()])
        .args(tools)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "benches/peers/runner.py failed");
    let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("\n{stages} stages, milliseconds        up to date      of ours     first run");
    for tool in std::iter::once(&"imp_flow").chain(tools) {
        let time = |of: &str, tool: &str| figures[of][tool].as_f64().unwrap() * 1e3;
        let again = time("again", tool);
        println!("  {tool:<24}{again:12.1}{:12.1}x{:14.0}", again / time("again", "imp_flow"), time("first", tool));
    }
}

/// Commands that check every stage.
fn own() {
    println!("\nmilliseconds                    1,000 stages     10,000 stages");
    let mut rows = [("plan", Vec::new()), ("run that checks all", Vec::new()), ("one stage has changed", Vec::new())];
    for stages in [1000, 10_000] {
        let folder = fresh(&format!("own-{stages}"));
        let mut text = String::from("name = \"own\"\n");
        for i in 0..stages {
            write!(text, "[stages.s{i}]\nkind = \"synthetic\"\ntext = \"{i}\"\n").unwrap();
            if i >= 10 {
                writeln!(text, "after = \"s{}\"", i - 10).unwrap();
            }
        }
        fs::write(folder.join("p.toml"), text).unwrap();
        run(&folder, &["run", "p.toml", "--quiet"]);
        rows[0].1.push(median(|_| run(&folder, &["plan", "p.toml"])));
        // `--json` reports every stage, so that all are checked.
        rows[1].1.push(median(|_| run(&folder, &["run", "p.toml", "--json"])));
        // The last stage, which no other stage depends on.
        let changed = |round| format!("stages.s{}.text=\"round {round}\"", stages - 1);
        rows[2].1.push(median(|round| run(&folder, &["run", "p.toml", "--quiet", "--set", &changed(round)])));
    }
    for (name, times) in rows {
        println!("  {name:<24}{:18.1}{:18.1}", times[0], times[1]);
    }
}

/// An artifact of 20,000 files: made and hashed, then found in the cache. Also the speed of hashing.
fn many_files() {
    let folder = fresh("many");
    fs::write(folder.join("p.toml"), "name = \"many\"\n[stages.s]\nkind = \"synthetic\"\nfiles = 20_000\n").unwrap();
    println!("\nan artifact of 20,000 files, milliseconds");
    println!("  {:<40}{:10.1}", "made and stored", run(&folder, &["run", "p.toml", "--quiet"]));
    let found = median(|_| run(&folder, &["run", "p.toml", "--quiet", "--json"]));
    println!("  {:<40}{found:10.1}", "found in the cache");
    let large = folder.join("large");
    fs::create_dir_all(&large).unwrap();
    let megabytes = 1024;
    fs::write(large.join("weights"), vec![7; megabytes << 20]).unwrap();
    fs::write(folder.join("q.toml"), "name = \"q\"\n[stages.s]\nkind = \"download\"\nsource = \"large\"\n").unwrap();
    run(&folder, &["run", "q.toml", "--quiet"]);
    let time = median(|_| run(&folder, &["cache", "verify", "--quiet"]));
    println!("  {:<40}{:10.1} GB/s", "hashing 1 GB in the page cache", (megabytes << 20) as f64 / 1e6 / time);
}

fn fresh(name: &str) -> PathBuf {
    let folder = Path::new("target/bench-runner").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs the program. Returns milliseconds.
fn run(folder: &Path, args: &[&str]) -> f64 {
    let start = Instant::now();
    let output = Command::new(PROGRAM).args(args).current_dir(folder).output().unwrap();
    let time = start.elapsed().as_secs_f64() * 1e3;
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    time
}

fn median(measure: impl Fn(usize) -> f64) -> f64 {
    sleep(Duration::from_secs(3));
    let mut times: Vec<f64> = (0..ROUNDS).map(measure).collect();
    times.sort_unstable_by(f64::total_cmp);
    times[ROUNDS / 2]
}
