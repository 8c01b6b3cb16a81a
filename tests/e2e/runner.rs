//! The runner alone, with stages that take no time: selection, failures, retries, resources.

use crate::support::{DIAMOND, Space, diamond, ran};

#[test]
fn stages_are_selected_forced_and_left_out() {
    let space = diamond();
    let refused = space.run(&["run", "p.toml", "--only", "d"]);
    assert_eq!(refused.code, Some(2));
    assert!(
        refused.stderr.contains("stage `d` needs `b`, which is neither selected nor cached")
            && refused.stderr.contains("= help: run `b` first: `--until b`"),
        "{}",
        refused.stderr
    );
    assert!(space.run(&["run", "p.toml", "--until", "e"]).stderr.contains("--until e: there is no such stage"));
    assert_eq!(ran(&space, &["run", "p.toml", "--until", "b"]), ["a", "b"]);
    assert_eq!(space.stages_in("diamond", "left out"), ["c", "d"]);
    assert_eq!(ran(&space, &["run", "p.toml", "--from", "b", "--until", "c"]), [""; 0], "the intersection is empty");
    assert_eq!(ran(&space, &["run", "p.toml"]), ["c", "d"]);
    // It produces the same bytes, so the stages that need it stay cached.
    assert_eq!(ran(&space, &["run", "p.toml", "--force", "a"]), ["a"]);
    let plan = space.succeed(&["run", "p.toml", "--dry-run", "--force", "b"]).stdout;
    assert!(plan.contains("run     b  --force\n") && plan.contains("2 of 4 cached, 2 would run"), "{plan}");
}

#[test]
fn with_keep_going_other_stages_run_after_a_failure() {
    let space = Space::new();
    let broken = DIAMOND.replace("text = \"b\"", "text = \"b\"\nfail = \"out of luck\"");
    space.write("p.toml", broken + "[stages.e]\nkind = \"synthetic\"\nafter = \"c\"\n");
    let args = ["run", "p.toml", "--keep-going", "--jobs", "1"];
    let output = space.run(&args);
    assert_eq!(output.code, Some(1));
    let (ran, skipped) = (space.stages_in("diamond", "ran"), space.stages_in("diamond", "skipped"));
    assert_eq!((ran, skipped), (vec!["a".into(), "c".into(), "e".into()], vec!["d".to_string()]));
    let stderr = output.stderr;
    assert!(stderr.contains("error: stage `b`: out of luck\n  | "), "{stderr}");
    assert!(stderr.contains("about to fail\n  help: remove `fail`\n  log: HERE/cache/work/"), "{stderr}");
    // Without `--keep-going`, nothing new starts; with one job at a time, `c` comes after `b`.
    let strict = Space::new();
    strict.write("p.toml", space.read("p.toml"));
    assert_eq!(strict.run(&["run", "p.toml", "--jobs", "1"]).code, Some(1));
    assert_eq!(strict.stages_in("diamond", "ran"), ["a"]);
}

#[test]
fn only_transient_failures_are_retried() {
    let space = diamond();
    space.write("imp-flow.toml", "retries = 2\nretry_seconds = 0\n");
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nflaky = 2"));
    let output = space.succeed(&["run", "p.toml"]);
    assert!(output.stderr.contains("b: no luck at try 2; retrying in 0.00 s"), "{}", output.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b2\"\nflaky = 3"));
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("error: stage `b`: no luck at try 3"), "{}", output.stderr);
    // The death of a process is not transient.
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b3\"\ncrash = true"));
    let output = space.run(&["run", "p.toml"]);
    assert_eq!(output.code, Some(1));
    assert!(output.stderr.contains("its process was ended by signal 6"), "{}", output.stderr);
}

#[test]
fn stages_that_need_more_than_the_machine_has_are_refused_before_anything_runs() {
    let space = diamond();
    space.write("imp-flow.toml", "memory = \"2GB\"\ngpus = [0]\n");
    let requests = "text = \"d\"\nruntime = { memory = \"3GB\", gpus = 2 }";
    space.write("p.toml", DIAMOND.replace("text = \"d\"", requests));
    let plan = space.run(&["plan", "p.toml"]);
    assert_eq!(plan.code, Some(2));
    assert!(plan.stderr.contains("stage `d` needs 2 GPUs, but this machine has 1"), "{}", plan.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"d\"", requests).replace("gpus = 2", "gpus = 1"));
    let plan = space.run(&["plan", "p.toml"]);
    assert!(plan.stderr.contains("stage `d` needs 3.0 GB of memory, but this machine has 2.0 GB"), "{}", plan.stderr);
    space.write("p.toml", DIAMOND.replace("text = \"d\"", requests).replace("\"3GB\"", "\"3 apples\""));
    let plan = space.run(&["plan", "p.toml"]);
    assert!(plan.stderr.contains("write a number and a unit, as in `16GB`"), "{}", plan.stderr);
}

#[test]
fn a_stage_sees_only_its_own_gpus() {
    let space = Space::new();
    space.write("imp-flow.toml", "gpus = [4, 5, 6]\ncpus = 2\n");
    let stage = |name: &str, gpus: usize| {
        let rest = format!("steps = 40\nstep_ms = 10\ntext = \"{name}\"\nruntime = {{ gpus = {gpus} }}\n");
        format!("[stages.{name}]\nkind = \"synthetic\"\n{rest}")
    };
    space.write("p.toml", format!("name = \"p\"\n{}{}{}", stage("a", 2), stage("b", 1), stage("c", 0)));
    space.succeed(&["run", "p.toml"]);
    let gpus = |name: &str| {
        let log = space.succeed(&["log", name]).stdout;
        log.lines().find_map(|line| line.split_once("GPUs: ")).unwrap().1.to_string()
    };
    assert_eq!(["a", "b", "c"].map(gpus), ["4,5", "6", ""]);
}

#[test]
fn stages_with_the_same_key_have_one_outcome() {
    let space = Space::new();
    let twin = |name: &str, rest: &str| format!("[stages.{name}]\nkind = \"synthetic\"\ntext = \"same\"\n{rest}\n");
    let last = "[stages.last]\nkind = \"synthetic\"\nafter = \"b\"\n";
    space.write("p.toml", format!("name = \"p\"\n{}{}{last}", twin("a", ""), twin("b", "")));
    assert_eq!(ran(&space, &["run", "p.toml"]), ["a", "last"]);
    let again = space.succeed(&["run", "p.toml", "--force", "a,b"]);
    assert!(again.stdout.contains("p is done: 1 ran, 2 cached"), "{}", again.stdout);
    let broken = "fail = \"no luck\"";
    space.write("p.toml", format!("name = \"p\"\n{}{}{last}", twin("a", broken), twin("b", broken)));
    assert_eq!(space.run(&["run", "p.toml", "--keep-going"]).code, Some(1));
    assert_eq!(space.stages_in("p", "skipped"), ["b", "last"]);
}

#[test]
fn cached_stages_may_need_more_than_the_machine_has() {
    let space = diamond();
    space.write("p.toml", DIAMOND.replace("text = \"b\"", "text = \"b\"\nruntime = { memory = \"3GB\" }"));
    space.write("imp-flow.toml", "memory = \"4GB\"\n");
    space.succeed(&["run", "p.toml"]);
    space.write("imp-flow.toml", "memory = \"2GB\"\n");
    space.succeed(&["status"]);
    assert_eq!(ran(&space, &["run", "p.toml", "--set", "stages.d.text=other"]), ["d"]);
    let refused = space.run(&["run", "p.toml", "--force", "b"]);
    assert!(
        refused.stderr.contains("stage `b` needs 3.0 GB of memory, but this machine has 2.0 GB"),
        "{}",
        refused.stderr
    );
}
