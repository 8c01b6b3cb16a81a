#![allow(clippy::unwrap_used)]
use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::*;
use crate::testing::{Outcome, Trial, tree};

/// Runs a script of the shell, with one input that has the file `in.txt`.
fn shell(root: &Path, script: &str) -> Outcome {
    run(root, &json!({"command": ["sh", "-c", script, "name", "{input}", "{out}"]}), |trial| trial)
}

fn run(root: &Path, config: &Value, change: impl FnOnce(Trial) -> Trial) -> Outcome {
    fs::create_dir_all(root.join("in")).unwrap();
    fs::write(root.join("in/in.txt"), "content").unwrap();
    change(Trial::new(&root.join("work"), &[(INPUTS, &root.join("in"))])).run::<Command>(config)
}

#[test]
fn a_command_reads_its_inputs_and_writes_its_output() {
    let root = tempfile::tempdir().unwrap();
    fs::write(
        root.path().join("filter.sh"),
        "cat \"$1/in.txt\" > sub/result; echo $SIZE $IMP_FLOW_SEED >> sub/result\n",
    )
    .unwrap();
    let config = json!({
        "command": ["sh", "filter.sh", "{inputs[0]}"],
        "files": ["filter.sh"],
        "environment": {"SIZE": "{seed}px", "X": "a b"},
    });
    let outcome = run(root.path(), &config, |trial| trial);
    assert!(outcome.error().to_string().contains("exit code 2"), "the folder sub is missing");
    let script = "mkdir sub; cat \"$1/in.txt\" > sub/result; echo $SIZE $IMP_FLOW_SEED >> sub/result
        echo 'imp-flow: progress 3/4 images'; echo '{\"kept\": 2.5}' > $IMP_FLOW_FIGURES\n";
    fs::write(root.path().join("filter.sh"), script).unwrap();
    fs::remove_dir_all(root.path().join("work")).unwrap();
    let outcome = run(root.path(), &config, |trial| trial);
    assert_eq!(outcome.figure("kept").to_bits(), 2.5_f64.to_bits());
    let told = outcome.events.iter().find_map(|event| match event {
        crate::contract::event::Event::Progress(told) => Some((told.done, told.total, told.unit.clone())),
        _ => None,
    });
    assert_eq!(told, Some((3, 4, "images".into())));
    let files = tree(&outcome.done());
    assert_eq!(files, BTreeMap::from([(PathBuf::from("sub/result"), b"content42px 42\n".to_vec())]));
}

#[test]
fn only_the_environment_that_is_named_is_passed() {
    let root = tempfile::tempdir().unwrap();
    let config =
        json!({"command": ["sh", "-c", "env > env.txt"], "pass_environment": ["CARGO_PKG_NAME", "NO_SUCH_VARIABLE"]});
    let out = run(root.path(), &config, |trial| trial).done();
    let text = fs::read_to_string(out.join("env.txt")).unwrap();
    let names: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    let usual = ["PATH", "HOME", "TMPDIR", "CUDA_VISIBLE_DEVICES", "PWD", "SHLVL", "_", "OLDPWD"];
    let foreign = names.iter().filter(|name| !name.starts_with("IMP_FLOW_") && !usual.contains(name));
    assert_eq!(foreign.collect::<Vec<_>>(), [&"CARGO_PKG_NAME"]);
}

/// What `docs/PIPELINES.md` promises beside the words in braces.
#[test]
fn what_words_say_variables_say_too() {
    let root = tempfile::tempdir().unwrap();
    let script = "test \"$1 $2 $3 $4 $5\" = \"$IMP_FLOW_OUT $IMP_FLOW_CHECKPOINT $IMP_FLOW_SEED $IMP_FLOW_THREADS $IMP_FLOW_INPUT_0\" &&
        cd / && cp \"$IMP_FLOW_INPUT_0/in.txt\" \"$IMP_FLOW_OUT\"";
    let words = ["{out}", "{checkpoint}", "{seed}", "{threads}", "{inputs[0]}"];
    let command = [&["sh", "-c", script, "sh"][..], &words].concat();
    let files = tree(&run(root.path(), &json!({"command": command}), |trial| trial).done());
    assert_eq!(files, BTreeMap::from([(PathBuf::from("in.txt"), b"content".to_vec())]));
}

#[test]
fn what_goes_wrong_is_told_with_what_to_do() {
    for (script, message) in [
        ("exit 3", "sh ended with exit code 3"),
        ("kill -TERM $$", "sh was ended by signal 15"),
        ("true", "the command has written no file"),
        ("ln -s /etc/passwd link", "left link, which is a link"),
        ("touch x; echo '{\"a\": \"b\"}' > $IMP_FLOW_FIGURES", "the figures of the command"),
        ("touch x; mkdir $IMP_FLOW_FIGURES", "the figures of the command"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let error = shell(root.path(), script).error();
        assert!(error.to_string().contains(message), "{script}: {error}");
        assert!(error.help().is_some_and(|help| !help.is_empty()), "{script}");
    }
    for (config, message) in [
        (json!({}), "must name a program"),
        (json!({"command": ["python3 x.py"]}), "which no shell reads"),
        (json!({"command": ["no-such-program-anywhere", "x"]}), "is not in any folder of PATH"),
        (json!({"command": ["sh"], "environment": {"A=B": "x"}}), "no name of a variable"),
    ] {
        let config: Config = serde_json::from_value(config).unwrap();
        let issue = Command::check(&config).unwrap_err();
        assert!(issue.message.contains(message), "{issue:?}");
    }
}

#[test]
fn the_program_and_the_files_are_part_of_the_key() {
    let config = |command: &[&str], files: &[&str]| {
        let config: Config = serde_json::from_value(json!({"command": command, "files": files})).unwrap();
        Command::sources(&config)
    };
    let shell = on_path("sh").unwrap();
    assert!(Path::new(&shell).is_absolute());
    assert_eq!(config(&["sh", "x.sh"], &["x.sh"]), ["x.sh".to_string(), shell]);
    assert_eq!(config(&["./tool"], &[]), ["./tool"]);
    assert_eq!(config(&["tool.sh"], &["tool.sh"]), ["tool.sh", "tool.sh"]);
}

#[test]
fn a_command_that_is_stopped_ends_with_what_it_has_started() {
    let root = tempfile::tempdir().unwrap();
    let script =
        "sh -c 'while true; do date +%N > alive; sleep 0.05; done' & echo 'imp-flow: progress 1/2 steps'; wait";
    let config = json!({"command": ["sh", "-c", script]});
    let start = Instant::now();
    let outcome = run(root.path(), &config, |trial| trial.cancelled_after(1));
    assert!(matches!(outcome.result, Err(StageError::Cancelled)));
    assert!(start.elapsed() < Duration::from_mins(1));
    let alive = || fs::read(outcome.out.join("alive")).unwrap_or_default();
    let before = alive();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(alive(), before, "what it has started still writes");
}

#[test]
fn what_an_earlier_attempt_has_left_is_ended_first() {
    let root = tempfile::tempdir().unwrap();
    let (work, node) = (root.path().join("work"), root.path().join("node"));
    fs::create_dir_all(work.join("out")).unwrap();
    fs::create_dir_all(&node).unwrap();
    // It wrote on the disk of a node, where each attempt has another folder, and what it read lies in the stage's.
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "while true; do date +%N > ../work/out/alive; sleep 0.05; done"]).current_dir(&node);
    // As when the process of the stage is killed: nothing is dropped.
    std::mem::forget(Running::start(command, &work).unwrap());
    while fs::read(work.join("out/alive")).unwrap_or_default().is_empty() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let done = shell(root.path(), "echo new > alive; sleep 0.3").done();
    assert_eq!(fs::read_to_string(done.join("alive")).unwrap(), "new\n");
}

#[test]
fn a_daemon_of_a_command_neither_writes_on_nor_is_waited_for() {
    let root = tempfile::tempdir().unwrap();
    let script =
        "setsid sh -c 'while true; do date +%N > alive; sleep 0.05; done' & while ! test -s alive; do sleep 0.01; done";
    let done = shell(root.path(), script).done();
    let alive = || fs::read(done.join("alive")).unwrap_or_default();
    let before = alive();
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(alive(), before, "it still writes");
}

#[test]
fn what_a_command_leaves_behind_does_not_change_the_result() {
    let root = tempfile::tempdir().unwrap();
    let done = shell(root.path(), "echo a > x; (sleep 0.4; echo b > x) & true").done();
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(fs::read_to_string(done.join("x")).unwrap(), "a\n");
}
