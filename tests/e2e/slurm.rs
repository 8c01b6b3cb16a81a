//! Slurm as an executor, against shell scripts that stand in for its programs and start jobs on this machine. `.ci/slurm` tells the
//! same stories to a real one.

mod arrays;
mod cluster;

use std::{
    fs,
    process::{Command, Stdio},
};

use crate::{
    interrupt::{signal, wait_for},
    support::ran,
};
use cluster::{Cluster, kill, stderr};

#[test]
fn stages_are_submitted_with_what_they_ask_for_and_stay_cached_on_any_executor() {
    let cluster = Cluster::new();
    let slurm = "executor = \"slurm\"\n[slurm]\npoll_seconds = 1\npartition = \"gpu\"\narguments = [\"--nice=1\"]\n\
                 [slurm.kinds.synthetic]\ntime = \"30\"\n";
    cluster.space.write("imp-flow.toml", slurm);
    let here = "[stages.a]\nkind = \"synthetic\"\nruntime = { executor = \"local\" }\n";
    let there = "[stages.b]\nkind = \"synthetic\"\nafter = \"a\"\nsteps = 15\nstep_ms = 100\n\
                 [stages.b.runtime]\ngpus = 2\ncpus = 3\nmemory = \"1GiB\"\nslurm = { qos = \"it's\", arguments = [\"--exclude=n1\"] }\n";
    cluster.space.write("p.toml", format!("name = \"p\"\n{here}{there}"));
    cluster.space.write("fake/hold", "Priority");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("running   b  job 1: PENDING (Priority)");
    fs::remove_file(cluster.space.path("fake/hold")).unwrap();
    let (code, text) = stderr(runner);
    for words in ["a: started", "b: submitting it to Slurm", "b: job 1: PENDING (Priority)", "b: done"] {
        assert!(code == Some(0) && text.contains(words), "{words}: {text}");
    }
    assert_eq!(cluster.jobs(), 1);
    let arguments = cluster.fake("arguments").unwrap();
    let expected = "--signal=B:TERM@120\n--cpus-per-task=3\n--mem=1024M\n--gres=gpu:2\n--time=30\n--partition=gpu\n--qos=it's\n\
                    --nice=1\n--exclude=n1\n";
    assert!(arguments.contains(expected), "{arguments}");
    assert!(cluster.succeed(&["log", "b"]).stdout.contains("job 1: PENDING (Priority)"));
    assert!(cluster.succeed(&["show", "b"]).stdout.contains(", on n7"), "the receipt has the node");
    // Where a stage runs is no part of its key. A kind can stay here.
    fs::remove_file(cluster.space.path("imp-flow.toml")).unwrap();
    assert_eq!(ran(&cluster.space, &["run", "p.toml"]), [""; 0]);
    cluster.space.write("imp-flow.toml", "executor = \"slurm\"\n[slurm]\nlocal = [\"synthetic\"]\n");
    cluster.succeed(&["run", "p.toml", "--force", "b"]);
    assert_eq!(cluster.jobs(), 1);
}

#[test]
fn a_job_outlives_its_runner_and_the_next_run_takes_its_result() {
    let cluster = Cluster::with_steps(40);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    kill(runner);
    let status = cluster.succeed(&["status"]).stdout;
    assert!(status.contains("running   a  job 1: ") && status.contains("follows it again"), "{status}");
    // Garbage collection leaves it what it needs.
    cluster.succeed(&["cache", "gc", "--keep", "0"]);
    // Another run at the same time submits it as little as this one.
    let second = cluster.start(&["run", "p.toml"]);
    let output = cluster.succeed(&["run", "p.toml"]);
    assert_eq!(stderr(second).0, Some(0), "{}", output.stderr);
    assert_eq!(cluster.jobs(), 1);
    // Of a closed terminal the job hears nothing, nor of the end of a session, which sends both.
    let args = ["run", "p.toml", "--set", "stages.a.text=other"];
    let runner = cluster.start(&args);
    cluster.wait_for_progress();
    signal("HUP", runner.id());
    signal("TERM", runner.id());
    let (code, text) = stderr(runner);
    assert!(code == Some(130) && text.contains("a: goes on as job 2; the same command follows it"), "{text}");
    let found = cluster.succeed(&args).stderr;
    assert!(found.contains("an earlier run has submitted it as job 2: following that"), "{found}");
    assert_eq!((cluster.jobs(), cluster.fake("cancelled")), (2, None));
}

#[test]
fn a_runner_that_dies_while_it_submits_leaves_one_job() {
    let cluster = Cluster::with_steps(10);
    cluster.space.write("fake/slow", "");
    let runner = cluster.start(&["run", "p.toml"]);
    wait_for("the job", || cluster.fake("1.process"));
    kill(runner);
    fs::remove_file(cluster.space.path("fake/slow")).unwrap();
    let output = cluster.succeed(&["run", "p.toml"]);
    assert!(output.stderr.contains("submitted it as job 1"), "{}", output.stderr);
    assert_eq!(cluster.jobs(), 1);
}

#[test]
fn a_job_that_was_given_up_does_nothing_when_it_starts_at_last() {
    let cluster = Cluster::with_steps(20);
    cluster.space.write("fake/hold", "Priority");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("job 1: PENDING");
    kill(runner);
    // Slurm forgets it, and so a second one is submitted. Then the first one starts.
    for file in ["fake/1.state", "fake/hold"] {
        fs::remove_file(cluster.space.path(file)).unwrap();
    }
    let runner = cluster.start(&["run", "p.toml"]);
    wait_for("the second job", || cluster.fake("2.process"));
    let late = Command::new("sh").arg(cluster.space.path("fake/1.script")).output().unwrap();
    let said = String::from_utf8_lossy(&late.stderr);
    assert!(late.status.success() && said.contains("this job was given up"), "{said}");
    let (code, text) = stderr(runner);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Slurm does not know job 1 any more, and it left no result; retrying"), "{text}");
}

#[test]
fn a_job_that_slurm_has_lost_is_followed_while_it_works() {
    let cluster = Cluster::with_steps(60);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    // It has the same number as a job of somebody else.
    cluster.space.write("fake/1.name", "other");
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.contains("Slurm does not know it here, but it holds its lock"), "{text}");
    assert_eq!((cluster.jobs(), cluster.fake("cancelled")), (1, None));
}

#[test]
fn a_result_of_which_a_runner_had_taken_a_part_is_made_again() {
    let cluster = Cluster::with_steps(10);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    kill(runner);
    wait_for("the end", || cluster.fake("1.state").filter(|state| state.starts_with("COMPLETED")));
    // As a runner leaves it that dies while it takes the result.
    let work = cluster.work();
    fs::write(work.join("taking"), "").unwrap();
    fs::remove_dir_all(work.join("out")).unwrap();
    cluster.succeed(&["run", "p.toml"]);
    assert_eq!(cluster.jobs(), 2);
    cluster.succeed(&["cache", "verify"]);
}

#[test]
fn one_partition_of_several_may_still_take_a_job() {
    let cluster = Cluster::with_steps(1);
    cluster.space.write("fake/partitions", "long,short");
    cluster.space.write("fake/hold", "PartitionTimeLimit");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("job 1: PENDING (PartitionTimeLimit)");
    fs::remove_file(cluster.space.path("fake/hold")).unwrap();
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.contains("it may not start: its time limit is beyond"), "{text}");
    assert_eq!(cluster.fake("cancelled"), None);
}

#[test]
fn a_job_that_can_t_be_cancelled_is_not_forgotten() {
    let cluster = Cluster::new();
    cluster.space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = 2\nstep_ms = 5000\n");
    cluster.space.write("fake/deaf", "");
    let runner = cluster.start(&["run", "p.toml"]);
    wait_for("the job", || cluster.run(&["log", "a"]).stdout.contains("started a stage").then_some(()));
    signal("INT", runner.id());
    wait_for("the request", || {
        let mut files = fs::read_dir(cluster.work()).unwrap().flatten();
        files.any(|file| file.file_name().to_string_lossy().starts_with("stop-")).then_some(())
    });
    signal("INT", runner.id());
    let (code, text) = stderr(runner);
    assert!(code == Some(130) && text.contains("a: goes on as job 1; the same command follows it"), "{text}");
    fs::remove_file(cluster.space.path("fake/deaf")).unwrap();
    let again = cluster.succeed(&["run", "p.toml"]).stderr;
    assert!(again.contains("an earlier run has submitted it as job 1: following that"), "{again}");
}

#[test]
fn what_is_submitted_again_is_what_this_run_asks_for() {
    let cluster = Cluster::with_steps(40);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    kill(runner);
    let text = fs::read_to_string(cluster.space.path("p.toml")).unwrap();
    cluster.space.write("p.toml", text + "[stages.a.runtime]\ncheckpoint_seconds = 7.5\n");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.end(1, "NODE_FAIL", None);
    wait_for("the second job", || cluster.fake("2.process"));
    let job = fs::read_to_string(cluster.work().join("job.json")).unwrap();
    assert!(job.contains("\"checkpoint_seconds\": 7.5"), "{job}");
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.contains("following that"), "{text}");
}

#[test]
fn a_job_without_time_is_submitted_again_and_one_without_memory_is_not() {
    let cluster = Cluster::with_steps(30);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.end(1, "TIMEOUT", None);
    wait_for("the second job", || cluster.fake("2.process"));
    cluster.end(2, "NODE_FAIL", None);
    let (code, text) = stderr(runner);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("a: job 1 ran out of its time on n7 (steps: "), "{text}");
    assert!(text.contains("a: job 2 ended because its node failed on n7 (NODE_FAIL); retrying"), "{text}");
    assert_eq!(cluster.jobs(), 3);

    for (state, words, help) in [
        ("OUT_OF_MEMORY", "was ended because it used more memory than it had", "give it more `memory`"),
        ("CANCELLED", "was cancelled with `scancel`", "the same command submits it again, and it resumes"),
        ("FAILED", "was killed on n7 (signal 9)", "the node ran out of memory"),
    ] {
        let cluster = Cluster::with_steps(30);
        let runner = cluster.start(&["run", "p.toml"]);
        cluster.end(1, state, None);
        let (code, text) = stderr(runner);
        assert!(code == Some(1) && text.contains(words) && text.contains(help), "{state}: {text}");
        let again = cluster.succeed(&["run", "p.toml"]).stderr;
        assert!(again.contains("to resume from its checkpoint"), "{again}");
    }
}

#[test]
fn ctrl_c_saves_what_runs_and_cancels_what_waits() {
    let cluster = Cluster::with_steps(100);
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    let cancelled = cluster.fake("cancelled").unwrap();
    assert_eq!(cancelled, "--state=PENDING 1\n--batch --signal=TERM 1");
    assert!(cluster.succeed(&["status"]).stdout.contains("stopped   a  resumes from its checkpoint"));

    cluster.space.write("fake/hold", "Resources");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("job 2: PENDING (Resources)");
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    assert_eq!(cluster.fake("2.state").unwrap(), "CANCELLED|None|");
    assert!(!cluster.work().join("submission.json").exists());

    // The second one does not wait for a stage that does not hear.
    fs::remove_file(cluster.space.path("fake/hold")).unwrap();
    cluster.space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = 2\nstep_ms = 20000\n");
    let runner = cluster.start(&["run", "p.toml"]);
    // Until it listens, the signal ends it.
    wait_for("the job", || cluster.run(&["log", "a"]).stdout.contains("started a stage").then_some(()));
    signal("INT", runner.id());
    wait_for("the request", || cluster.fake("cancelled")?.contains("TERM 3").then_some(()));
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    let cancelled = cluster.fake("cancelled").unwrap();
    assert!(cancelled.ends_with("\n3"), "{cancelled}");
}

#[test]
fn ctrl_c_is_heard_while_sbatch_does_not_answer() {
    for (file, jobs) in [("slow", 1), ("mute", 0)] {
        let cluster = Cluster::with_steps(60);
        cluster.space.write(&format!("fake/{file}"), "");
        let runner = cluster.start(&["run", "p.toml"]);
        wait_for("the call", || cluster.fake(if file == "slow" { "1.process" } else { "calls" }));
        signal("INT", runner.id());
        let (code, text) = stderr(runner);
        assert!(code == Some(130) && text.contains("`sbatch` has not answered"), "{text}");
        fs::remove_file(cluster.space.path("fake").join(file)).unwrap();
        // What Slurm has made of it all the same stops, and the next run goes on from there.
        if file == "slow" {
            wait_for("the end of the job", || cluster.fake("1.state").filter(|state| state.starts_with("FAILED")));
        }
        let again = cluster.succeed(&["run", "p.toml"]).stderr;
        assert_eq!((cluster.jobs(), again.contains("submitted it as job 1")), (jobs + 1, file == "slow"), "{again}");
    }
}

#[test]
fn what_accounting_knows_is_used_and_its_failures_are_said_once() {
    let cluster = Cluster::with_steps(2);
    cluster.space.write("fake/slow", "");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.forget("1");
    kill(runner);
    fs::remove_file(cluster.space.path("fake/slow")).unwrap();
    cluster.space.write("fake/accounting", "");
    let found = cluster.succeed(&["run", "p.toml"]).stderr;
    assert!(found.contains("submitted it as job 1: following that") && !found.contains("sacct"), "{found}");

    let cluster = Cluster::with_steps(2);
    cluster.space.write("fake/accounting", "sacct: error: slurmdbd: Connection refused\n");
    cluster.space.write("fake/mute", "");
    let runner = cluster.start(&["run", "p.toml"]);
    wait_for("the call", || cluster.fake("calls"));
    kill(runner);
    fs::remove_file(cluster.space.path("fake/mute")).unwrap();
    let failed = cluster.succeed(&["run", "p.toml"]).stderr;
    assert_eq!(failed.matches("sacct does not answer").count(), 1, "{failed}");
    assert!(failed.contains("are unknown: slurmdbd: Connection refused"), "{failed}");
}

#[test]
fn a_detached_runner_is_a_job_that_submits_the_stages() {
    let cluster = Cluster::with_steps(3);
    cluster.space.write(
        "imp-flow.toml",
        "executor = \"slurm\"\n[slurm]\npartition = \"gpu\"\npoll_seconds = 1\n[slurm.runner]\npartition = \"cpu\"\n",
    );
    let started = cluster.succeed(&["run", "p.toml", "--detach"]);
    assert!(started.stdout.starts_with("p: goes on as job 1, which submits its stages\n"), "{}", started.stdout);
    wait_for("the end of the run", || cluster.fake("1.state")?.starts_with("COMPLETED").then_some(()));
    assert_eq!((cluster.jobs(), cluster.fake("2.state").unwrap()), (2, "COMPLETED|None|n7".into()));
    let log = fs::read_to_string(cluster.space.path("artifacts/p/run.log")).unwrap();
    assert!(log.contains("a: done in"), "{log}");
    assert!(cluster.succeed(&["run", "p.toml"]).stdout.contains("up to date"));

    cluster
        .space
        .write("fake/refuse", "sbatch: error: Batch job submission failed: Invalid partition name specified\n");
    let refused = cluster.run(&["run", "p.toml", "--detach", "--set", "stages.a.steps=4"]);
    let words = "error: Slurm refused the runner: Invalid partition name specified\nit asks for partition cpu\n  help: change `partition`";
    assert!(refused.code == Some(2) && refused.stderr.contains(words), "{}", refused.stderr);
    // Perhaps it is there.
    cluster
        .space
        .write("fake/refuse", "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n");
    let unheard = cluster.run(&["run", "p.toml", "--detach", "--set", "stages.a.steps=4"]);
    let words = "Slurm has not said whether it took the runner: Batch job submission failed: Socket timed out on send/recv operation\n  \
                 help: if `squeue --me` lists a job imp-flow-p, the run goes on there; otherwise";
    assert!(unheard.code == Some(2) && unheard.stderr.contains(words), "{}", unheard.stderr);
}

#[test]
fn what_can_never_run_is_said_in_words() {
    let cluster = Cluster::with_steps(1);
    cluster
        .space
        .write("fake/refuse", "sbatch: error: Batch job submission failed: Invalid partition name specified\n");
    let refused = cluster.run(&["run", "p.toml", "--set", "stages.a.runtime.slurm.partition=nope"]);
    let words = "error: stage `a`: Slurm refused it: Invalid partition name specified\nit asks for partition nope, 1 CPU\n  \
                 help: change `partition`";
    assert!(refused.code == Some(1) && refused.stderr.contains(words), "{}", refused.stderr);
    fs::remove_file(cluster.space.path("fake/refuse")).unwrap();

    cluster.space.write("fake/hold", "PartitionTimeLimit");
    let stuck = cluster.run(&["run", "p.toml"]);
    let words = "job 1 can never start: its time limit is beyond that of the partition (PartitionTimeLimit)";
    assert!(stuck.code == Some(1) && stuck.stderr.contains(words), "{}", stuck.stderr);
    assert_eq!(cluster.fake("1.state").unwrap(), "CANCELLED|None|");

    let nowhere = cluster.space.output(cluster.command(&["run", "p.toml"]).env("PATH", "/nowhere"));
    let words = "stages can't be submitted to Slurm: `sbatch` was not found";
    assert!(nowhere.code == Some(2) && nowhere.stderr.contains(words), "{}", nowhere.stderr);
    let wrong = cluster.run(&["plan", "p.toml", "--set", "stages.a.runtime.slurm.time=2h"]);
    assert!(wrong.code == Some(2) && wrong.stderr.contains("is not a time limit of Slurm"), "{}", wrong.stderr);
}

#[test]
fn a_full_queue_is_waited_for() {
    let cluster = Cluster::with_steps(1);
    cluster.space.write("fake/refuse", "sbatch: error: AssocMaxSubmitJobLimit\nsbatch: error: Batch job submission failed: Job \
                                        violates accounting/QOS policy (job submit limit, user's size and/or time limits)\n");
    let runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("running   a  not submitted yet: the queue takes no more of your jobs");
    fs::remove_file(cluster.space.path("fake/refuse")).unwrap();
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.matches("not submitted yet").count() == 1, "{text}");
    // Nothing is left behind by a run that is stopped while it waits.
    cluster.space.write("fake/refuse", "sbatch: error: QOSMaxSubmitJobPerUserLimit\n");
    let runner = cluster.start(&["run", "p.toml", "--force", "a"]);
    cluster.wait_for_status("not submitted yet");
    signal("INT", runner.id());
    assert_eq!(stderr(runner).0, Some(130));
    assert_eq!((cluster.jobs(), cluster.work().join("submission.json").exists()), (1, false));
}

#[test]
fn many_jobs_are_asked_for_in_one_question() {
    let cluster = Cluster::new();
    let stage = |n: usize| format!("[stages.s{n}]\nkind = \"synthetic\"\ntext = \"{n}\"\nsteps = 20\nstep_ms = 100\n");
    cluster.space.write("p.toml", format!("name = \"p\"\n{}", (0..6).map(stage).collect::<String>()));
    cluster.succeed(&["run", "p.toml"]);
    let questions = cluster.fake("questions").unwrap().lines().count();
    assert!(questions < 30, "6 jobs were asked for {questions} times");
}

#[test]
fn failures_of_stages_are_those_of_any_executor() {
    let cluster = Cluster::new();
    cluster.space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nfail = \"no\\u001b[2Jluck\"\n");
    let failed = cluster.run(&["run", "p.toml"]);
    assert_eq!(failed.code, Some(1));
    assert!(failed.stderr.contains("error: stage `a`: no\\u{1b}[2Jluck\n"), "{}", failed.stderr);
    assert!(
        failed.stderr.contains("about to fail\n") && failed.stderr.contains("  help: remove `fail`\n"),
        "{}",
        failed.stderr
    );
    cluster.space.write("p.toml", "name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nflaky = 2\n");
    let flaky = cluster.succeed(&["run", "p.toml"]).stderr;
    assert!(flaky.contains("a: no luck at try 2; retrying"), "{flaky}");
    assert_eq!(cluster.jobs(), 4);
}

#[test]
fn an_output_is_written_on_the_nodes_disk_and_checkpoints_outlive_the_job() {
    let cluster = Cluster::with_steps(40);
    let text = fs::read_to_string(cluster.space.path("p.toml")).unwrap();
    cluster.space.write("p.toml", text + "files = 3\n[stages.a.runtime.slurm]\nwork = \"$NODE_DISK/jobs\"\n");
    let disk = cluster.space.path("node/jobs");
    fs::create_dir_all(&disk).unwrap();
    let on_node = |args: &[&str]| {
        let mut command = cluster.command(args);
        command.env("NODE_DISK", cluster.space.path("node"));
        command
    };
    let runner = on_node(&["run", "p.toml"]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    cluster.end(1, "TIMEOUT", None);
    wait_for("the second job", || cluster.fake("2.process"));
    let (code, text) = stderr(runner);
    assert!(code == Some(0) && text.contains("submitted again, to resume from its checkpoint"), "{text}");
    let log = cluster.succeed(&["log", "a"]).stdout;
    for words in
        ["writes its output in ", "/node/jobs/.imp-flow-", "goes on from its checkpoint", "takes its output into "]
    {
        assert!(log.contains(words), "{words}: {log}");
    }
    // What the killed process has left is for the site; what came to its end has left nothing.
    assert!(fs::read_dir(&disk).unwrap().count() <= 1);
    let there = cluster.space.digests("p");
    cluster.space.write("imp-flow.toml", "executor = \"local\"\n");
    cluster.succeed(&["run", "p.toml", "--force", "a"]);
    assert_eq!(cluster.space.digests("p"), there);

    cluster.space.write("imp-flow.toml", "executor = \"slurm\"\n[slurm]\npoll_seconds = 1\n");
    let failed = cluster.space.output(on_node(&["run", "p.toml", "--force", "a"]).env("NODE_DISK", "/nowhere"));
    let words = "error: stage `a`: /nowhere/jobs is to be the folder of the node where it works, and is none";
    assert!(failed.code == Some(1) && failed.stderr.contains(words), "{}", failed.stderr);
    let wrong = cluster.run(&["plan", "p.toml", "--set", "stages.a.runtime.slurm.work=\"$(id)\""]);
    assert!(wrong.code == Some(2) && wrong.stderr.contains("is not a folder of a node"), "{}", wrong.stderr);
}
