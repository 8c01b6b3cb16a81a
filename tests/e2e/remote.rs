//! A remote cache that two machines share, each with its own cache, in a folder or a bucket; and what goes wrong there.

mod bucket;
mod faults;
#[path = "../../stages/bucket/server.rs"]
mod server;
mod verbs;

use std::{fs, path::PathBuf, process::Command};

use crate::support::{DIAMOND, Output, Space, files};

/// Two machines, `one` and `two`, each with its own cache, and one folder that both see.
struct Lab {
    space: Space,
    /// Variables for the program.
    variables: Vec<(&'static str, String)>,
}

impl Lab {
    fn new() -> Self {
        let space = Space::new();
        fs::create_dir_all(space.path("shared")).unwrap();
        let remote = format!("file://{}", space.path("shared").display());
        Self::of(space, &remote, Vec::new())
    }

    fn of(space: Space, remote: &str, variables: Vec<(&'static str, String)>) -> Self {
        let lab = Self { space, variables };
        for machine in ["one", "two"] {
            lab.settings(machine, &format!("remote = \"{remote}\"\nremote_seconds = 20\n"));
            lab.space.write(&format!("{machine}/p.toml"), DIAMOND);
        }
        lab
    }

    fn settings(&self, machine: &str, text: &str) {
        self.space.write(&format!("{machine}/imp-flow.toml"), text);
    }

    /// Runs the program on a machine.
    fn run(&self, machine: &str, args: &[&str]) -> Output {
        self.space.output(&mut self.command(machine, args))
    }

    fn command(&self, machine: &str, args: &[&str]) -> Command {
        let mut command = self.space.command(args);
        command.current_dir(self.space.path(machine)).env_remove("IMP_FLOW_REMOTE");
        // Nobody's own files of AWS's tools.
        command.env("HOME", self.space.path("home")).env_remove("AWS_PROFILE");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn succeed(&self, machine: &str, args: &[&str]) -> Output {
        let output = self.run(machine, args);
        assert_eq!(output.code, Some(0), "{machine} {args:?}\n{}\n{}", output.stdout, output.stderr);
        output
    }

    /// Runs the pipeline on a machine. Returns the names of the stages that ran there, and the output.
    fn ran(&self, machine: &str) -> (Vec<String>, Output) {
        let output = self.succeed(machine, &["--json", "run", "p.toml"]);
        let mut names: Vec<String> = events(&output, "finished").iter().map(|event| text(&event["stage"])).collect();
        names.sort_unstable();
        (names, output)
    }

    /// A machine forgets everything.
    fn forget(&self, machine: &str) {
        for folder in ["cache", "artifacts"] {
            fs::remove_dir_all(self.space.path(machine).join(folder)).unwrap();
        }
    }

    /// The files of the remote cache below `folder`.
    fn shared(&self, folder: &str) -> Vec<PathBuf> {
        files(&self.space.path("shared").join(folder))
    }
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_string()
}

fn events(output: &Output, name: &str) -> Vec<serde_json::Value> {
    let all = output.stdout.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.filter(|event| event["event"] == name).collect()
}

/// The warnings of a run: those of stages and those about the remote cache.
fn warnings(output: &Output) -> Vec<String> {
    events(output, "warning").iter().map(|event| text(&event["message"])).collect()
}

const ALL: [&str; 4] = ["a", "b", "c", "d"];

#[test]
fn what_one_machine_made_another_does_not_make_again() {
    let lab = Lab::new();
    let (made, output) = lab.ran("one");
    assert_eq!(made, ALL);
    let exchange = &events(&output, "remote")[0];
    assert_eq!((exchange["sent"].as_u64(), exchange["unsent"].as_u64()), (Some(4), Some(0)));
    assert_eq!(lab.shared("receipts").len(), 4);
    assert!(
        !lab.space.path("one/cache/unsent").join("x").exists() && files(&lab.space.path("one/cache/unsent")).is_empty()
    );

    let plan = lab.succeed("two", &["--json", "plan", "p.toml"]).stdout;
    let values = plan.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let planned: u64 = values.map(|value| value["pull"].as_u64().unwrap()).sum();
    let plan = lab.succeed("two", &["plan", "p.toml"]).stdout;
    assert!(plan.contains("remote  a") && plan.contains("to pull"), "{plan}");
    assert!(
        plan.contains("diamond: 0 of 4 cached, 4 in the remote cache (") && plan.contains("none would run"),
        "{plan}"
    );
    assert!(files(&lab.space.path("two/cache/objects")).is_empty(), "a plan changes nothing");

    let (made, output) = lab.ran("two");
    assert_eq!(made, [""; 0]);
    assert_eq!((events(&output, "pulled").len(), warnings(&output).len()), (4, 0));
    let outputs: u64 =
        events(&output, "hit").iter().map(|event| event["made"]["output"]["bytes"].as_u64().unwrap()).sum();
    assert_eq!(planned, outputs, "these stages share no files");
    let outputs = |machine: &str| {
        ALL.map(|stage| {
            fs::read(lab.space.path(machine).join("artifacts/diamond").join(stage).join("value.txt")).unwrap()
        })
    };
    assert_eq!(outputs("one"), outputs("two"));
    let why = lab.succeed("two", &["why", "d"]).stdout;
    assert!(
        why.contains("on another machine") && why.contains("its result was pulled from file://HERE/shared"),
        "{why}"
    );
    let show = lab.succeed("two", &["show", "d"]).stdout;
    assert!(show.contains("pulled") && show.contains("from file://HERE/shared"), "{show}");
    assert!(lab.succeed("two", &["cache", "verify"]).stdout.starts_with("OK"));
    assert!(lab.succeed("two", &["log", "d"]).stdout.contains('d'));
    // From now on nothing is asked.
    fs::remove_dir_all(lab.space.path("shared")).unwrap();
    let (made, output) = lab.ran("two");
    assert!(made.is_empty() && warnings(&output).is_empty());
}

#[test]
fn only_what_is_missing_is_pulled() {
    let lab = Lab::new();
    lab.ran("one");
    lab.ran("two");
    fs::remove_dir_all(lab.space.path("two/cache/receipts")).unwrap();
    let (made, output) = lab.ran("two");
    assert!(made.is_empty());
    let bytes: u64 = events(&output, "pulled").iter().map(|event| event["bytes"].as_u64().unwrap()).sum();
    assert_eq!(bytes, 0);
}
