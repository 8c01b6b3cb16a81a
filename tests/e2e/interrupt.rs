//! Ctrl-C, `kill -9` and two runs at once: nothing is lost, no stage runs twice, and the weights are the same.

use std::{
    os::unix::process::ExitStatusExt,
    path::PathBuf,
    process::{Child, Command},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::support::{SMALL, Space};

/// The digests of an undisturbed run.
fn undisturbed() -> Vec<(String, String)> {
    let space = Space::new();
    space.write("small.toml", SMALL);
    space.succeed(&["run", "small.toml"]);
    space.digests("small")
}

/// Waits until `found` returns something; fails the test after a minute.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(it) = found() {
            return it;
        }
        assert!(start.elapsed() < Duration::from_mins(1), "waited a minute for {what}");
        sleep(Duration::from_millis(5));
    }
}

/// The work folder of a stage of `kind` that has saved a checkpoint.
pub(crate) fn with_checkpoint(space: &Space, kind: &str) -> Option<PathBuf> {
    std::fs::read_dir(space.path("cache/work")).ok()?.flatten().map(|entry| entry.path()).find(|work| {
        let job = std::fs::read_to_string(work.join("job.json")).unwrap_or_default();
        let checkpoint = std::fs::read_dir(work.join("checkpoint")).ok().and_then(|mut entries| entries.next());
        job.contains(&format!("\"kind\": \"{kind}\"")) && checkpoint.is_some()
    })
}

pub(crate) fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status().unwrap().success());
}

/// The process of the stage that `runner` is running.
fn stage_process(runner: &Child) -> Option<u32> {
    let children = format!("/proc/{0}/task/{0}/children", runner.id());
    std::fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
}

fn is_alive(process: u32) -> bool {
    // A zombie still has a folder.
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn any_interruption_ends_with_the_same_weights() {
    let expected = undisturbed();

    let space = Space::new();
    space.write("small.toml", SMALL);
    // Ctrl-C during training.
    let mut runner = space.start(&["run", "small.toml"]);
    wait_for("a checkpoint", || with_checkpoint(&space, "finetune"));
    signal("INT", runner.id());
    assert_eq!(runner.wait().unwrap().code(), Some(130));
    let plan = space.succeed(&["plan", "small.toml"]).stdout;
    assert!(plan.contains("resumes from its checkpoint"), "{plan}");

    // Kill the runner: its stage must not outlive it for long.
    let mut runner = space.start(&["run", "small.toml"]);
    let stage = wait_for("a stage", || stage_process(&runner));
    runner.kill().unwrap();
    runner.wait().unwrap();
    wait_for("the orphan to end", || (!is_alive(stage)).then_some(()));

    // Kill the stage: the run fails and says how to resume.
    let runner = space.command(&["run", "small.toml"]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    signal("KILL", wait_for("a stage", || stage_process(&runner)));
    let output = runner.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("its process was killed (signal 9)"), "{stderr}");
    assert!(stderr.contains("the same command resumes from the last checkpoint"), "{stderr}");

    space.succeed(&["run", "small.toml"]);
    assert_eq!(space.digests("small"), expected);
}

#[test]
fn two_runs_at_once_share_the_work() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    space.write("other.toml", SMALL.replace("name = \"small\"", "name = \"other\""));
    let mut other = space.start(&["run", "other.toml"]);
    space.succeed(&["run", "small.toml"]);
    assert_eq!(other.wait().unwrap().code(), Some(0));

    assert_eq!(space.digests("small"), space.digests("other"));
    let (mut all, other) = (space.stages_in("small", "ran"), space.stages_in("other", "ran"));
    assert!(all.iter().all(|stage| !other.contains(stage)), "ran twice: {all:?}, {other:?}");
    all.extend(other);
    assert_eq!(all.len(), 12, "{all:?}");
}

/// Nothing runs yet that could be saved: Ctrl-C or SIGTERM ends the process as it ends any other. SIGTERM, since shells start what
/// runs in the background, such as these tests, with SIGINT ignored.
#[test]
fn a_signal_does_not_wait_until_a_large_source_is_read() {
    let space = Space::new();
    space.write("p.toml", "[stages.d]\nkind = \"download\"\nsource = \"large.bin\"\n");
    // It has a hole only, and takes a long time to read, also beside other tests.
    std::fs::File::create(space.path("large.bin")).unwrap().set_len(64 << 30).unwrap();
    let mut runner = space.start(&["run", "p.toml"]);
    let maps = format!("/proc/{}/maps", runner.id());
    let is_reading = || std::fs::read_to_string(&maps).ok()?.contains("large.bin").then_some(());
    wait_for("the source to be read", is_reading);
    signal("TERM", runner.id());
    assert_eq!(runner.wait().unwrap().signal(), Some(15), "it went on reading, and ended by itself");
    assert!(!space.path("artifacts/p").exists());
}

#[test]
fn a_detached_run_goes_on_in_the_background_and_stops_with_a_signal() {
    let space = Space::new();
    space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = 400\nstep_ms = 100\n");
    let told = space.succeed(&["run", "p.toml", "--detach"]).stdout;
    let told = told.strip_prefix("p: goes on in the background as process ").unwrap();
    let process: u32 = told.lines().next().unwrap().parse().unwrap();
    wait_for("progress", || space.succeed(&["status"]).stdout.contains("/400 steps").then_some(()));
    // A session of its own: nothing that happens to this terminal reaches it.
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!(fields[3], process.to_string(), "{stat}");
    let second = space.run(&["run", "p.toml", "--detach", "--dry-run"]);
    assert!(second.code == Some(2) && second.stderr.contains("cannot be used with"), "{}", second.stderr);
    signal("INT", process);
    wait_for("its end", || (!is_alive(process)).then_some(()));
    let log = std::fs::read_to_string(space.path("artifacts/p/run.log")).unwrap();
    assert!(log.contains("a: stopped") && log.contains("interrupted after"), "{log}");
    assert!(space.succeed(&["plan", "p.toml"]).stdout.contains("resumes from its checkpoint"));
    // What has nothing to do does not go on.
    space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\n").succeed(&["run", "p.toml"]);
    let told = space.succeed(&["run", "p.toml", "--detach", "--name", "n"]).stdout;
    assert!(told.starts_with("p is done: "), "{told}");
}
