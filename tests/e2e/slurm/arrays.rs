//! Stages that are ready together and ask for the same: one array of jobs.

use std::fs;

use super::cluster::{Cluster, stderr};
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
    let (calls, questions) = (cluster.fake("calls").unwrap(), cluster.fake("questions").unwrap());
    assert!(calls.lines().count() <= 5, "one for four stages `a`, and at most one for each `b`: {calls}");
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
    let mut runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        wait_for("the element", || cluster.fake(&format!("1_{element}.process")));
    }
    // It does not know the number.
    runner.kill().unwrap();
    runner.wait().unwrap();
    fs::remove_file(cluster.space.path("fake/slow")).unwrap();
    let mut runner = cluster.start(&["sweep", "p.toml"]);
    for element in 0..3 {
        cluster.wait_for_status(&format!("job 1_{element}: RUNNING"));
    }
    // Now it does.
    runner.kill().unwrap();
    runner.wait().unwrap();
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

#[test]
fn where_arrays_are_refused_stages_are_submitted_one_by_one() {
    let cluster = sweep(2, 1);
    cluster.space.write("fake/no-arrays", "");
    let output = cluster.succeed(&["sweep", "p.toml"]);
    assert!(output.stdout.contains("p is done: 4 ran, 0 cached"), "{}", output.stdout);
    assert_eq!(cluster.jobs(), 4);
    assert_eq!(fs::read_dir(cluster.space.path("cache/work/arrays")).unwrap().count(), 0);
}
