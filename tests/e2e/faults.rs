//! Kills at random points, full disks and damaged files: the next run completes with the digests of an undisturbed run, and
//! no stage's process outlives its runner for long.
//!
//! More rounds of kills: `IMP_FLOW_FAULT_ROUNDS=1000 cargo test --test e2e kills_at_random -- --nocapture`.

use std::{
    fmt::Write,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use crate::support::Space;

/// Default number of rounds; `IMP_FLOW_FAULT_ROUNDS` overrides it. Each round kills one pipeline once or several times.
const ROUNDS: u64 = 20;

fn rounds() -> u64 {
    match std::env::var("IMP_FLOW_FAULT_ROUNDS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => ROUNDS,
    }
}

/// Quick stages in several layers, some with checkpoints and some with constant output.
fn pipeline(round: u64) -> String {
    let mut text = format!("name = \"p\"\nseed = {round}\n");
    for layer in 0..3 {
        for column in 0..3 {
            let after = match layer {
                0 => String::new(),
                _ => format!("after = [\"s{}{column}\", \"s{}{}\"]\n", layer - 1, layer - 1, (column + 1) % 3),
            };
            let steps = if column == 1 { "steps = 4\nstep_ms = 4\n" } else { "" };
            let constant = if layer == 1 && column == 2 { "constant = true\n" } else { "" };
            let name = format!("s{layer}{column}");
            let more = format!("text = \"{name}\"\n{after}{steps}{constant}");
            write!(text, "[stages.{name}]\nkind = \"synthetic\"\nfiles = 3\n{more}").unwrap();
        }
    }
    text
}

/// Pseudorandom numbers, the same in each run of the test, so that a failure can be reproduced.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// The stage processes whose job file is below `folder`.
fn stages_below(folder: &Path) -> Vec<u32> {
    let folder = folder.canonicalize().unwrap().display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let line = |id: &u32| fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
    ids.filter(|id| line(id).contains("__stage") && line(id).contains(&folder)).collect()
}

fn kill(process: u32) {
    // The process may have ended already.
    let _ = Command::new("kill").args(["-KILL", &process.to_string()]).stderr(Stdio::null()).status();
}

/// Waits until no stage process is left.
fn no_orphans(folder: &Path) {
    let start = Instant::now();
    while !stages_below(folder).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(10), "a stage outlives its runner");
        sleep(Duration::from_millis(5));
    }
}

/// The digests of an undisturbed run.
fn undisturbed(round: u64) -> Vec<(String, String)> {
    let space = Space::new();
    space.write("p.toml", pipeline(round));
    space.succeed(&["run", "p.toml"]);
    space.digests("p")
}

#[test]
#[expect(clippy::print_stdout, reason = "shows how many kills there were")]
fn kills_at_random_points_lose_nothing() {
    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let (rounds, mut kills) = (rounds(), 0);
    assert!(rounds > 0, "no rounds");
    for round in 1..=rounds {
        let space = Space::new();
        space.write("p.toml", pipeline(round));
        // Kill runs of the same pipeline several times, at different points.
        let mut done = false;
        while !done {
            let mut runner = space.start(&["run", "p.toml", "--jobs", "3"]);
            sleep(Duration::from_micros(dice.roll(60_000)));
            let victim = dice.roll(3);
            if victim > 0 {
                stages_below(&space.path(".")).into_iter().for_each(kill);
            }
            if victim < 2 {
                runner.kill().unwrap();
            }
            kills += 1;
            done = runner.wait().unwrap().success() || dice.roll(5) == 0;
        }
        no_orphans(&space.path("."));
        let after = space.run(&["run", "p.toml"]);
        assert_eq!(after.code, Some(0), "round {round}: {}\n{}", after.stdout, after.stderr);
        assert_eq!(space.digests("p"), undisturbed(round), "round {round}");
        let verify = space.run(&["cache", "verify"]);
        assert_eq!(verify.code, Some(0), "round {round}: {}", verify.stdout);
    }
    println!("{rounds} rounds with {kills} kills: every next run completed, with the digests of an undisturbed one");
}

#[test]
fn concurrent_runs_make_each_stage_once() {
    let space = Space::new();
    let text = pipeline(7).replace("steps = 4", "steps = 20");
    let start = |number: usize| -> Child {
        let file = format!("p{number}.toml");
        space.write(&file, text.replace("name = \"p\"", &format!("name = \"p{number}\"")));
        let mut command = space.command(&["run", &file]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let runs: Vec<Child> = (0..5).map(start).collect();
    for run in runs {
        let output = run.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        assert!(!stderr.contains("sled") && !stderr.contains("warning"), "{stderr}");
    }
    let mut ran: Vec<String> = (0..5).flat_map(|number| space.stages_in(&format!("p{number}"), "ran")).collect();
    ran.sort_unstable();
    assert_eq!(ran.len(), 9, "{ran:?}");
    ran.dedup();
    assert_eq!(ran.len(), 9);
}

#[test]
fn a_run_waits_only_for_the_stages_that_it_needs() {
    let space = Space::new();
    // Each stage requests the whole machine. A stage that waits for another run must not keep it from others.
    let slow = "[stages.slow]\nkind = \"synthetic\"\nsteps = 2000\nstep_ms = 20\nruntime = { cpus = 1000 }\n";
    let quick = "[stages.quick]\nkind = \"synthetic\"\nruntime = { cpus = 1000 }\n";
    space.write("slow.toml", format!("name = \"slow\"\n{slow}"));
    space.write("both.toml", format!("name = \"both\"\n{slow}{quick}"));
    let mut other = space.start(&["run", "slow.toml"]);
    while stages_below(&space.path(".")).is_empty() {
        sleep(Duration::from_millis(5));
    }
    let mut both = space.start(&["run", "both.toml", "--jobs", "1"]);
    let start = Instant::now();
    while !space.path("artifacts/both/quick").exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "`quick` does not depend on `slow`");
        sleep(Duration::from_millis(5));
    }
    // Once the other run is dead, this run makes `slow`.
    other.kill().unwrap();
    other.wait().unwrap();
    let start = Instant::now();
    while !space.succeed(&["status"]).stdout.contains("running   slow") {
        assert!(start.elapsed() < Duration::from_secs(20), "no run makes `slow`");
        sleep(Duration::from_millis(50));
    }
    assert!(Command::new("kill").args(["-INT", &both.id().to_string()]).status().unwrap().success());
    assert_eq!(both.wait().unwrap().code(), Some(130));
}

#[test]
fn a_full_disk_is_reported_and_nothing_is_lost() {
    let space = Space::new();
    let small = PathBuf::from("disk");
    fs::create_dir_all(space.path("disk")).unwrap();
    let mount = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(space.path("disk"))
        .stderr(Stdio::null())
        .status();
    let mounted = mount.is_ok_and(|status| status.success());
    space.write("p.toml", pipeline(3) + "[stages.large]\nkind = \"synthetic\"\nafter = \"s22\"\nfiles = 200\n");
    let cache = if mounted { small.join("cache") } else { PathBuf::from("cache") };
    let args = ["run", "p.toml", "--cache", cache.to_str().unwrap()];
    let failed = if mounted {
        space.run(&args)
    } else {
        // Without permission to mount, limit the size of files: a similar error from the system.
        let mut command = space.command(&args);
        limit_files(&mut command, 1);
        space.output(&mut command)
    };
    assert_eq!(failed.code, Some(1), "{}\n{}", failed.stdout, failed.stderr);
    let words = ["No space left on device", "File too large"];
    assert!(words.iter().any(|word| failed.stderr.contains(word)), "{}", failed.stderr);
    if mounted {
        assert!(failed.stderr.contains("make room on the disk, then run the same command again"), "{}", failed.stderr);
        let grow = Command::new("mount").args(["-o", "remount,size=64m"]).arg(space.path("disk")).status();
        assert!(grow.unwrap().success());
    }
    let after = space.run(&args);
    let again = space.digests("p");
    let verify = space.run(&["cache", "verify", "--cache", cache.to_str().unwrap()]);
    if mounted {
        assert!(Command::new("umount").arg("-l").arg(space.path("disk")).status().unwrap().success());
    }
    assert_eq!(after.code, Some(0), "{}", after.stderr);
    assert_eq!(verify.code, Some(0), "{}", verify.stdout);
    let undisturbed = Space::new();
    undisturbed.write("p.toml", space.read("p.toml"));
    undisturbed.succeed(&["run", "p.toml"]);
    assert_eq!(again, undisturbed.digests("p"));
}

/// Limits the size of the command's files, in blocks, through a shell whose `ulimit` applies to what it executes.
fn limit_files(command: &mut Command, blocks: u32) {
    let program = command.get_program().to_owned();
    let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let folder = command.get_current_dir().unwrap().to_owned();
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &format!("ulimit -f {blocks}; exec \"$0\" \"$@\"")])
        .arg(program)
        .args(args)
        .current_dir(folder);
    limited.env("NO_COLOR", "1").stdin(Stdio::null());
    *command = limited;
}

#[test]
fn damaged_stores_are_repaired() {
    let expected = undisturbed(1);
    let space = Space::new();
    space.write("p.toml", pipeline(1));
    space.succeed(&["run", "p.toml"]);
    let mut dice = Dice(42);
    let files = |folder: &str| {
        let all = Command::new("find").arg(space.path(folder)).args(["-type", "f"]).output().unwrap();
        let mut files: Vec<PathBuf> = String::from_utf8(all.stdout).unwrap().lines().map(PathBuf::from).collect();
        files.sort_unstable();
        files
    };
    for round in 0..30 {
        let folder = if round % 3 == 0 { "cache/receipts" } else { "cache/objects" };
        let all = files(folder);
        let path = &all[dice.roll(all.len() as u64) as usize];
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(path).unwrap();
        match dice.roll(5) {
            0 => bytes.truncate(dice.roll(bytes.len() as u64) as usize),
            1 => {
                let at = dice.roll(bytes.len() as u64) as usize;
                bytes[at] ^= 1 << dice.roll(8);
            }
            2 => bytes.clear(),
            // A folder in place of a file: not even root can read it.
            3 if folder == "cache/objects" => {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }
            _ => fs::remove_file(path).unwrap(),
        }
        if path.is_file() {
            fs::write(path, &bytes).unwrap();
        }
        // Whether damage was detected or not (a space in a receipt is none), the next run completes.
        space.run(&["cache", "verify"]);
        let after = space.run(&["run", "p.toml"]);
        assert_eq!(after.code, Some(0), "round {round}, {}: {}", path.display(), after.stderr);
        assert_eq!(space.digests("p"), expected, "round {round}, {}", path.display());
    }
}

#[test]
fn a_run_completes_if_artifacts_cant_be_written() {
    let space = Space::new();
    space.write("p.toml", pipeline(1));
    // A file instead of the folder, because a folder without write permission would not stop root.
    space.write("artifacts", "not a folder");
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(0), "{}", output.stderr);
    assert!(output.stderr.contains("can't link the artifact under artifacts"), "{}", output.stderr);
    assert!(output.stdout.contains("p is done: 9 ran"), "{}", output.stdout);
    fs::remove_file(space.path("artifacts")).unwrap();
    assert!(space.succeed(&["run", "p.toml"]).stdout.contains("p is up to date: 9 of 9 cached"));
    assert!(space.path("artifacts/p/s22/value.txt").is_file());
}

#[test]
fn a_closed_terminal_stops_the_run() {
    let space = Space::new();
    space.write("p.toml", "name = \"p\"\n[stages.slow]\nkind = \"synthetic\"\nsteps = 2000\nstep_ms = 20\n");
    let mut command = space.command(&["run", "p.toml"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    let mut runner = command.spawn().unwrap();
    while stages_below(&space.path(".")).is_empty() {
        sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-HUP", &runner.id().to_string()]).status().unwrap().success());
    assert_eq!(runner.wait().unwrap().code(), Some(130));
    no_orphans(&space.path("."));
    assert!(space.succeed(&["plan", "p.toml"]).stdout.contains("resumes from its checkpoint"));
}

#[test]
fn damaged_side_files_never_stop_a_stage() {
    type Damage = fn(&Path);
    let replace_by_folder = |path: &Path| {
        let _ = fs::remove_file(path);
        fs::create_dir_all(path.join("x")).unwrap();
    };
    let work_file: Damage = |work| {
        fs::remove_dir_all(work).unwrap();
        fs::write(work, "x").unwrap();
    };
    let checkpoint_file: Damage = |work| {
        fs::remove_dir_all(work.join("checkpoint")).unwrap();
        fs::write(work.join("checkpoint"), "x").unwrap();
    };
    let space = Space::new();
    let files = ["job.json", "log", "lock", "metrics.jsonl"].map(Some);
    for (round, file) in files.into_iter().chain([None, None]).enumerate() {
        let name = format!("p{round}");
        space.write(
            "p.toml",
            format!("name = \"{name}\"\n[stages.a]\nkind = \"synthetic\"\ntext = \"{name}\"\ncrash = true\n"),
        );
        assert_eq!(space.run(&["run", "p.toml"]).code, Some(1));
        let work = fs::read_dir(space.path("cache/work")).unwrap().map(|entry| entry.unwrap().path());
        let work = work.into_iter().find(|path| path.join("job.json").is_file()).unwrap();
        match (file, round) {
            (Some(file), _) => replace_by_folder(&work.join(file)),
            (None, 4) => checkpoint_file(&work),
            (None, _) => work_file(&work),
        }
        let mut output = space.run(&["run", "p.toml"]);
        let warned = output.stderr.contains("was damaged") || output.stdout.contains("was damaged");
        assert!(warned, "{round}: {} {}", output.stdout, output.stderr);
        if file.is_none() {
            // Its checkpoint is gone, so that it crashes once more.
            output = space.run(&["run", "p.toml"]);
        }
        assert_eq!(output.code, Some(0), "{round}: {} {}", output.stdout, output.stderr);
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_named() {
    for blocks in [0, 1, 2, 8] {
        let space = Space::new();
        space.write("p.toml", pipeline(1) + "[stages.large]\nkind = \"synthetic\"\nafter = \"s22\"\nfiles = 200\n");
        let mut command = space.command(&["run", "p.toml"]);
        limit_files(&mut command, blocks);
        let output = space.output(&mut command);
        assert_eq!(output.code, Some(1), "{blocks}: {}\n{}", output.stdout, output.stderr);
        assert!(output.stderr.contains("File too large"), "{blocks}: {}", output.stderr);
        space.succeed(&["run", "p.toml"]);
    }
}

/// Whoever installs another version while a run goes on does not end it.
#[test]
fn a_run_completes_with_its_own_program_although_another_one_is_installed() {
    let space = Space::new();
    space.write(
        "p.toml",
        "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = 10\nstep_ms = 100\n\
         [stages.b]\nkind = \"synthetic\"\nafter = [\"a\"]\n",
    );
    let program = space.path("installed");
    fs::copy(env!("CARGO_BIN_EXE_imp-flow"), &program).unwrap();
    let mut command = Command::new(&program);
    let mut run = command.args(["run", "p.toml"]).current_dir(space.path(".")).spawn().unwrap();
    crate::interrupt::wait_for("the first stage", || space.run(&["status"]).stdout.contains("/10 steps").then_some(()));
    fs::remove_file(&program).unwrap();
    fs::write(&program, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(run.wait().unwrap().success());
    assert_eq!(space.stages_in("p", "ran"), ["a", "b"]);
}
