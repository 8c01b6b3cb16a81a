//! A program of the user's own as a stage.

use std::process::Stdio;

use crate::{
    interrupt::wait_for,
    support::{Space, ran},
};

const PIPELINE: &str = r#"
name = "p"
[stages.raw]
kind = "download"
source = "raw"
[stages.filter]
kind = "command"
inputs = "raw"
command = ["sh", "filter.sh", "{input}"]
files = ["filter.sh"]
[stages.count]
kind = "command"
inputs = ["raw", "filter"]
command = ["sh", "-c", "cat {inputs[1]}/kept | wc -l > count"]
"#;

fn space() -> Space {
    let space = Space::new();
    space.write("p.toml", PIPELINE).write("raw/lines", "a\nb\nab\n");
    space.write("filter.sh", "grep a \"$1/lines\" > kept; echo '{\"kept\": 2}' > $IMP_FLOW_FIGURES\n");
    space
}

#[test]
fn a_command_is_cached_and_runs_again_when_its_script_changes() {
    let space = space();
    assert_eq!(ran(&space, &["run", "p.toml"]), ["count", "filter", "raw"]);
    assert_eq!(space.read("artifacts/p/count/count").trim(), "2");
    assert!(space.succeed(&["compare"]).stdout.contains("filter.kept"));
    assert!(ran(&space, &["run", "p.toml"]).is_empty());
    space.write("filter.sh", "grep b \"$1/lines\" > kept\n");
    let why = space.succeed(&["why", "filter"]).stdout;
    assert!(why.contains("filter.sh"), "{why}");
    // Its output has other bytes, so what reads it runs, too.
    assert_eq!(ran(&space, &["run", "p.toml"]), ["count", "filter"]);
    // The same lines in another way: the next stage stays cached.
    space.write("filter.sh", "grep -e b \"$1/lines\" > kept\n");
    assert_eq!(ran(&space, &["run", "p.toml"]), ["filter"]);
}

#[test]
fn a_command_that_fails_shows_what_it_said() {
    let space = space();
    space.write("filter.sh", "printf 'no such \u{1b}[31mthing\\ta\\r\\n' >&2; exit 7\n");
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("error: stage `filter`: sh ended with exit code 7"), "{}", output.stderr);
    assert!(output.stderr.contains("no such") && !output.stderr.contains('\u{1b}'), "{}", output.stderr);
    // Tabs and ends of lines are what they are; nothing else controls the terminal.
    let log = space.succeed(&["log", "filter"]).stdout;
    assert!(log.contains("[31mthing\ta\n") && !log.contains('\u{1b}'), "{log}");
    space.write("p.toml", PIPELINE.replace("{input}", "{inputs[3]}"));
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(2));
    assert!(output.stderr.contains("has `{inputs[3]}`, and the number of inputs is 1"), "{}", output.stderr);
}

/// Not under the program that made it.
#[test]
fn what_is_wrong_with_the_result_of_a_command_is_named_where_it_lies() {
    let space = Space::new();
    space.write(
        "p.toml",
        "name = \"p\"\n[stages.x]\nkind = \"command\"\ncommand = [\"sh\", \"-c\", \"echo no > config.json\"]\n\
         [stages.m]\nkind = \"merge\"\nmodel = \"x\"\n",
    );
    let told = space.run(&["run", "p.toml"]).stderr;
    assert!(told.contains("artifacts/p/x/config.json"), "{told}");
}

#[test]
fn a_source_that_a_stage_has_taken_away_is_no_cache_hit() {
    let space = space();
    let script = "rm \"$0\"; cp \"$1/lines\" kept\n";
    space.write("filter.sh", script);
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("stage `filter`: its source changed while it was being read"), "{}", output.stderr);
    space.write("filter.sh", script);
    assert!(space.succeed(&["plan", "p.toml"]).stdout.contains("run     filter"));
}

/// A source that is gone when its stage's turn comes ends the run, but not the work of others.
#[test]
fn what_still_runs_is_saved_if_the_run_cannot_go_on() {
    let space = Space::new();
    space.write(
        "p.toml",
        "name = \"p\"\n[stages.gate]\nkind = \"synthetic\"\nsteps = 20\nstep_ms = 100\n\
         [stages.long]\nkind = \"synthetic\"\nsteps = 600\nstep_ms = 100\n\
         [stages.script]\nkind = \"command\"\ninputs = \"gate\"\ncommand = [\"sh\", \"x.sh\"]\nfiles = [\"x.sh\"]\n",
    );
    space.write("x.sh", "true\n");
    let run = space.command(&["run", "p.toml"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("steps", || (space.run(&["status", "p.toml"]).stdout.matches(" steps").count() == 2).then_some(()));
    std::fs::remove_file(space.path("x.sh")).unwrap();
    let output = run.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("x.sh"), "{said}");
    space.write("x.sh", "true\n");
    let status = space.succeed(&["status", "p.toml"]).stdout;
    assert!(status.contains("stopped   long    resumes from its checkpoint"), "{status}");
}
