//! What stands around a run: what it records, `diff`, `--on-end`, templates, man pages.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    interrupt::{signal, wait_for},
    support::{DIAMOND, SMALL, Space},
};

fn runs(space: &Space) -> Vec<Value> {
    let lines = space.succeed(&["runs", "--json"]).stdout;
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_records_the_commit_and_the_machine_and_diff_says_what_changed() {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    let git = |args: &[&str]| {
        let identity = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"];
        let mut git = Command::new("git");
        git.arg("-C").arg(space.path("")).args(identity).args(args).env("GIT_CONFIG_GLOBAL", "/dev/null");
        git.output().is_ok_and(|output| output.status.success())
    };
    // Without git, nothing is recorded of it, and nothing fails.
    let has_git = git(&["init", "-q", "-b", "main"]) && git(&["add", "p.toml"]) && git(&["commit", "-qm", "first"]);
    space.succeed(&["run", "p.toml"]);
    let changed = DIAMOND.replace("score = 3.5", "score = 4.5").replace("text = \"b\"", "text = \"B\"");
    space.write("p.toml", changed);
    space.succeed(&["run", "p.toml", "--name", "second"]);

    let [new, old] = &*runs(&space) else { panic!("two runs") };
    let origin = &new["origin"];
    assert!(
        origin["threads"].as_u64() > Some(0) && origin["system"].is_string() && origin["cpu"].is_string(),
        "{origin}"
    );
    if has_git {
        let repository = |run: &Value| run["origin"]["repository"].clone();
        assert_eq!(repository(old)["commit"].as_str().unwrap().len(), 40);
        assert_eq!((&repository(old)["changed"], &repository(old)["branch"]), (&false.into(), &"main".into()));
        assert_eq!(repository(new)["changed"], true);
        let doctor: Value = serde_json::from_str(&space.succeed(&["doctor", "--json"]).stdout).unwrap();
        assert_eq!(doctor["repository"], repository(new));
    }

    let text = space.succeed(&["diff"]).stdout;
    let parts = [
        "\nparameters\n  stages.b.text  \"b\" -> \"B\"\n  stages.d.score  3.5 -> 4.5\n",
        "\nstages with another content\n  b\n  d\n",
        "\nresults\n  d.score  3.5 -> 4.5  +1.0000, better\n",
    ];
    for part in parts {
        assert!(text.contains(part), "{part}\nis not in\n{text}");
    }
    assert_eq!(has_git, text.contains(" of main, with changes"), "{text}");
    let id = old["id"].as_str().unwrap();
    let json: Value = serde_json::from_str(&space.succeed(&["diff", "second", id, "--json"]).stdout).unwrap();
    assert_eq!((&json["new"]["id"], &json["changes"]["figures"][0]["old"]), (&old["id"], &4.5.into()));
    assert!(space.succeed(&["diff", id, id]).stdout.contains("Nothing differs"));
    let refused = space.run(&["diff", id]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("there is no run of diamond before"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_command_at_the_end_is_told_how_the_run_ended() {
    let space = Space::new();
    space.write("p.toml", DIAMOND);
    let tell = r#"echo "$IMP_FLOW_PIPELINE $IMP_FLOW_STATUS $IMP_FLOW_FAILED $IMP_FLOW_RUN" >> told; test -s "$IMP_FLOW_REPORT"; echo loud"#;
    let output = space.succeed(&["run", "p.toml", "--json", "--on-end", tell]);
    assert!(output.stderr.contains("loud") && !output.stdout.contains("loud"));
    let id = runs(&space)[0]["id"].as_str().unwrap().to_string();
    assert_eq!(space.read("told"), format!("diamond done  {id}\n"));

    space.write("p.toml", DIAMOND.replace("text = \"c\"", "text = \"c\"\nfail = \"no luck\""));
    assert_eq!(space.run(&["run", "p.toml", "--on-end", tell]).code, Some(1));
    assert!(space.read("told").lines().last().unwrap().starts_with("diamond failed c "));

    // Its own failure is said, and is none of the run.
    space.write("p.toml", DIAMOND);
    let output = space.succeed(&["run", "p.toml", "--on-end", "exit 3"]);
    assert!(output.stderr.contains("the command of --on-end failed: exit status: 3"), "{}", output.stderr);

    // After Ctrl-C, but not after the second one.
    let slow = DIAMOND.replace("text = \"a\"", "text = \"slow\"\nsteps = 600\nstep_ms = 100");
    space.write("p.toml", slow);
    let mut run = space.start(&["run", "p.toml", "--on-end", tell]);
    let _ = wait_for("the stage", || fs::read_dir(space.path("cache/work")).ok()?.next());
    wait_for("its record", || (runs(&space)[0]["ending"] == "running").then_some(()));
    signal("INT", run.id());
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(space.read("told").lines().last().unwrap().starts_with("diamond interrupted "));
}

#[test]
fn a_command_at_the_end_that_hangs_is_ended_with_the_run() {
    for name in ["INT", "TERM", "HUP"] {
        let space = Space::new();
        space.write("p.toml", DIAMOND);
        let mut run = space.start(&["run", "p.toml", "--on-end", "echo $$ > begun; sleep 600; echo done > done"]);
        let command =
            wait_for("the command", || fs::read_to_string(space.path("begun")).ok()?.trim().parse::<u32>().ok());
        signal(name, run.id());
        assert!(run.wait().unwrap().success(), "the run itself was done");
        assert!(!space.path("done").exists());
        assert!(!std::path::Path::new(&format!("/proc/{command}")).exists(), "SIG{name} has left it");
    }
}

#[test]
fn templates_are_written_and_found_by_run() {
    let space = Space::new();
    let refused = space.run(&["run"]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("there is no pipeline.toml in this folder"),
        "{}",
        refused.stderr
    );
    space.succeed(&["init"]);
    let planned = space.succeed(&["plan"]).stdout;
    assert!(planned.contains("pipeline: 0 of 17 cached"), "{planned}");
    assert!(space.succeed(&["run", "--dry-run"]).stdout.contains("17 would run"));

    space.write("mine/data/captions.json", "[]");
    let wrote = space.succeed(&["init", "--template", "own-data", "mine"]).stdout;
    assert!(wrote.contains("Wrote mine/pipeline.toml. Next: imp-flow plan mine/pipeline.toml"), "{wrote}");
    assert!(space.read("mine/pipeline.toml").contains("name = \"mine\""));
    let graph = space.succeed(&["graph", "mine/pipeline.toml"]).stdout;
    assert!(graph.contains("finetune") && graph.contains("quantize"), "{graph}");

    space.succeed(&["init", "--template", "imp-v1", "imp.toml"]);
    assert!(space.read("imp.toml").contains("imp-flow run imp.toml"));
    assert!(space.succeed(&["graph", "imp.toml"]).stdout.contains("finetune"));
    // What it extends is there already, perhaps changed: it stays, and nothing else is written.
    let again = space.run(&["init", "--template", "imp-v1", "other.toml"]);
    assert!(again.code == Some(1) && again.stderr.contains("base/llava.toml"), "{}", again.stderr);
    assert!(!space.path("other.toml").exists());
    space.write("my_data/train.json", "[]");
    space.succeed(&["init", "--template", "finetune", "tuned.toml"]);
    assert!(space.succeed(&["graph", "tuned.toml"]).stdout.contains("finetune"));
}

#[test]
fn there_is_a_man_page_for_each_verb() {
    let space = Space::new();
    space.succeed(&["man", "--to", "man/man1"]);
    let page = space.read("man/man1/imp-flow-watch.1");
    assert!(page.contains("Host") || page.contains("token"), "{page}");
    let names: Vec<String> = fs::read_dir(space.path("man/man1"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(names.contains(&"imp-flow.1".into()) && names.contains(&"imp-flow-run.1".into()), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("__stage")), "{names:?}");
}

/// What docs/recipes sends elsewhere.
#[test]
fn runs_as_json_name_the_configuration_and_the_metrics_of_each_stage() {
    let space = Space::new();
    space.write("small.toml", SMALL);
    space.succeed(&["run", "small.toml", "--until", "pretrain"]);
    let [run] = &*runs(&space) else { panic!("one run") };
    let stages = run["points"][0]["stages"].as_array().unwrap();
    let stage = |name: &str| stages.iter().find(|stage| stage["name"] == name).unwrap();
    let pretrain = stage("pretrain");
    // With defaults, which the file does not have.
    assert_eq!(pretrain["config"]["global_batch_size"], 4);
    assert!(pretrain["config"]["warmup_ratio"].is_number(), "{pretrain}");
    // The path is absolute: `HERE` stands for the folder of the test.
    let metrics = pretrain["metrics"].as_str().unwrap().strip_prefix("HERE/").unwrap();
    let curve = space.read(metrics);
    let last: Value = serde_json::from_str(curve.lines().last().unwrap()).unwrap();
    assert!(last["step"] == 8 && last["loss"].is_number(), "{last}");
    assert!(stage("phi")["metrics"].is_null() && stage("phi")["config"]["source"] == "builtin:tiny-phi");
    assert!(stage("vqa_4bit")["config"].is_null(), "it did not run");
}
