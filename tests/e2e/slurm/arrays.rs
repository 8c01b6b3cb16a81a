//! Stages that are ready together and ask for the same: one array of jobs.

use std::fs;

use super::cluster::{Cluster, kill, stderr};
use crate::interrupt::{signal, wait_for};

/// A sweep of so many points of a stage with so many steps of a tenth of a second, and what comes after each.
fn sweep(points: usize, steps: usize) -> Cluster {
    let cluster = Cluster::new();
    let stages = format!(
        "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = {steps}\nstep_ms = 100\nruntime = {{ cpus = 1 }}\n\
         [stages.b]\nkind = \"synthetic\"\nafter = \"a\"\nruntime = {{ cpus = 1 }}\n"
    );
    let values: Vec<String> = (0..points).map(|point| format!("\"{point}\"")).collect();
    cluster.space.write("p.toml", stages + &format!("[sweep]\n\"stages.a.text\" = [{}]\n", values.join(", ")));
    cluster
}

#[test]
fn points_that_are_ready_together_are_one_array_and_each_is_followed_by_itself() {
    let cluster = sweep(4, 10);
    let output = cluster.succeed(&["sweep", "p.toml"]);
    assert!(output.stdout.contains("p is done: 8 ran, 0 cached"), "{}", output.stdout);
    for element in 0..4 {
        assert_eq!(cluster.fake(&format!("1_{element}.state")).unwrap(), "COMPLETED|None|n7");
        assert!(output.stderr.contains(&format!(": job 1_{element}: submitted")), "{}", output.stderr);
    }
    let questions = cluster.fake("questions").unwrap();
    assert!(cluster.calls() <= 5, "one for four stages `a`, and at most one for each `b`: {}", cluster.calls());
    assert!(questions.lines().count() < 30, "{questions}");
    // The same results as here, and each log is that of its own stage.
    let there = cluster.space.digests("p");
    assert!(cluster.succeed(&["log", "text=2/a"]).stdout.contains("submitted as job 1_"));
    fs::remove_dir_all(cluster.space.path("cache")).unwrap();
    fs::remove_file(cluster.space.path("imp-flow.toml")).unwrap();
    cluster.succeed(&["sweep", "p.toml"]);
    assert_eq!(cluster.space.digests("p"), there);
}

#[test]
fn elements_outlive_their_runner_and_one_that_dies_while_it_submits() {
    let cluster = sweep(3, 30);
    cluster.space.write("fake/slow", "");
    let runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        wait_for("the element", || cluster.fake(&format!("1_{element}.process")));
    }
    // It does not know the number.
    kill(runner);
    fs::remove_file(cluster.space.path("fake/slow")).unwrap();
    let runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        cluster.wait_for_status(&format!("job 1_{element}: RUNNING"));
    }
    let look_ups = cluster.fake("look-ups").unwrap();
    assert_eq!(look_ups.lines().count(), 1, "all were looked for in one question: {look_ups}");
    // Now it does.
    kill(runner);
    let output = cluster.succeed(&["sweep", "p.toml"]);
    for element in 0..3 {
        let found = format!("an earlier run has submitted it as job 1_{element}: following that");
        assert!(output.stderr.contains(&found), "{}", output.stderr);
    }
    assert!(output.stdout.contains("p is done: 6 ran, 0 cached"), "{}", output.stdout);
}

#[test]
fn one_element_ends_without_the_others() {
    let cluster = sweep(3, 40);
    let runner = cluster.start(&["sweep", "p.toml"]);
    cluster.wait_for_steps(3);
    cluster.end(1, "TIMEOUT", Some(1));
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.contains(": job 1_1 ran out of its time on n7"), "{text}");
    assert_eq!(text.matches("submitted again").count(), 1, "{text}");
    // It is resumed by a job of its own.
    assert!(text.contains(": job 2: submitted"), "{text}");
}

#[test]
fn ctrl_c_reaches_all_elements() {
    let cluster = sweep(3, 100);
    let runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        cluster.wait_for_status(&format!("job 1_{element}: RUNNING"));
    }
    cluster.wait_for_steps(3);
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    let cancelled = cluster.fake("cancelled").unwrap();
    for element in 0..3 {
        assert!(cancelled.contains(&format!("--batch --signal=TERM 1_{element}")), "{cancelled}");
    }
    assert_eq!(cluster.succeed(&["status"]).stdout.matches("resumes from its checkpoint").count(), 3);
    // Those that wait are cancelled.
    cluster.space.write("fake/hold", "Resources");
    let runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        cluster.wait_for_status(&format!("job 2_{element}: PENDING (Resources)"));
    }
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    for element in 0..3 {
        assert_eq!(cluster.fake(&format!("2_{element}.state")).unwrap(), "CANCELLED|None|");
    }
}

/// A sweep whose points take so many steps each.
fn uneven(steps: [usize; 2]) -> Cluster {
    let cluster = Cluster::new();
    let stage = "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nstep_ms = 100\nruntime = { cpus = 1 }\n";
    cluster.space.write("p.toml", format!("{stage}[sweep]\n\"stages.a.steps\" = {steps:?}\n"));
    cluster
}

#[test]
fn an_element_that_ended_and_was_forgotten_while_another_goes_on_is_not_made_again() {
    for accounting in [true, false] {
        let cluster = uneven([1, 60]);
        cluster.space.write("fake/slow", "");
        let runner = cluster.start(&["sweep", "p.toml"]);
        wait_for("the element", || cluster.fake("1_1.process"));
        kill(runner);
        fs::remove_file(cluster.space.path("fake/slow")).unwrap();
        cluster.forget("1_0");
        if accounting {
            cluster.space.write("fake/accounting", "");
        }
        let output = cluster.succeed(&["sweep", "p.toml"]);
        let found =
            if accounting { "submitted it as job 1_0: following" } else { "a job of an earlier run has done it" };
        assert!(output.stderr.contains(found), "{}", output.stderr);
        assert!(output.stderr.contains("submitted it as job 1_1: following"), "{}", output.stderr);
        assert_eq!(cluster.jobs(), 1, "{}", output.stderr);
    }
}

#[test]
fn an_array_that_is_too_large_is_cut_into_smaller_ones() {
    let invalid = "sbatch: error: Batch job submission failed: Invalid job array specification\n";
    for (most, calls, jobs) in [(2, 4, 3), (1, 7, 5)] {
        let cluster = sweep(5, 1);
        cluster.space.write(
            "p.toml",
            fs::read_to_string(cluster.space.path("p.toml")).unwrap().replace("[stages.b]", "[stages.c]"),
        );
        cluster.space.write("fake/most", most.to_string());
        cluster.space.write("fake/too-many", invalid);
        cluster.succeed(&["sweep", "p.toml", "--only", "a"]);
        assert_eq!((cluster.calls(), cluster.jobs()), (calls, jobs), "at most {most}");
        let arrays = fs::read_dir(cluster.space.path("cache/work/arrays")).unwrap().count();
        assert_eq!(arrays, if most == 1 { 0 } else { 2 }, "of what was refused nothing is left");
    }
}

#[test]
fn what_is_refused_for_another_reason_is_asked_for_once() {
    let cluster = sweep(6, 1);
    cluster
        .space
        .write("fake/refuse", "sbatch: error: Batch job submission failed: Invalid partition name specified\n");
    let refused = cluster.run(&["sweep", "p.toml"]);
    assert_eq!((refused.code, cluster.calls()), (Some(1), 1), "{}", refused.stderr);
    assert_eq!(refused.stderr.matches("it asks for").count(), 1, "{}", refused.stderr);
    let beside = refused.stderr.matches("Slurm refused it, as it refused `a@text=").count();
    assert_eq!(beside, 5, "{}", refused.stderr);
}
