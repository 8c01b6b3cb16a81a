//! Slurm as an executor, against shell scripts that stand in for its programs and start jobs on this machine. `.ci/slurm` tells the
//! same stories to a real one.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    interrupt::{signal, wait_for},
    support::{Output, Space, ran},
};

/// Starts the script as a process of its own, once there is no file `hold`. A file `refuse` is what it says instead, and a file
/// `slow` lets it register the job and never answer.
const SBATCH: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
[ -f refuse ] && { cat refuse >&2; exit 1; }
until mkdir busy 2> /dev/null; do sleep 0.01; done
printf '%s\n' "$@" > arguments
echo x >> calls
elements=
for argument; do
    case $argument in
        --output=*) log=${argument#*=} ;;
        --job-name=*) name=${argument#*=} ;;
        --wrap=*) wrapped=${argument#*=} ;;
        --array=0-*)
            [ -f no-arrays ] && { rmdir busy; echo 'sbatch: error: Batch job submission failed: Invalid job array specification' >&2; exit 1; }
            elements=$(seq 0 ${argument#--array=0-}) ;;
    esac
done
number=$(($(cat count 2> /dev/null || echo 0) + 1))
echo $number > count
start() {
    id=$number${1:+_$1}
    echo "$name" > $id.name
    [ -n "$wrapped" ] && echo "$wrapped" > $id.script || cp "$argument" $id.script
    echo "PENDING|$(cat hold 2> /dev/null || echo Priority)|" > $id.state
    {
        sleep 0.3
        while [ -f hold ]; do sleep 0.1; done
        case $(cat $id.state) in PENDING*) ;; *) exit ;; esac
        echo 'RUNNING|None|n7' > $id.state
        [ -n "$wrapped" ] && cd "$OLDPWD"
        log=$(echo "$log" | sed "s|%a|$1|")
        SLURM_ARRAY_TASK_ID=$1 SLURMD_NODENAME=n7 setsid sh "$FAKE/$id.script" >> "$log" 2>&1 &
        process=$!
        cd "$FAKE"
        echo $process > $id.process
        wait $process
        [ $? = 0 ] && state=COMPLETED || state=FAILED
        [ -f $id.end ] && state=$(cat $id.end)
        echo "$state|None|n7" > $id.new && mv $id.new $id.state
    } > /dev/null 2>&1 < /dev/null &
}
if [ -n "$elements" ]; then for element in $elements; do start $element; done; else start ''; fi
rmdir busy
[ -f slow ] && exec sleep 1000
echo $number
"#;

const SQUEUE: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
echo x >> questions
for state in *.state; do
    [ -f "$state" ] || continue
    id=${state%.state}
    for argument; do
        case $argument in
            --jobs=*) case ",${argument#*=}," in *",$id,"*) echo "$id|$(cat $state)" ;; esac ;;
            --name=*) [ "$(cat $id.name)" = "${argument#*=}" ] && echo "$id|$(cat $state)" ;;
        esac
    done
done
exit 0
"#;

const SCANCEL: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
echo "$*" >> cancelled
for argument; do id=$argument; done
case $*:$(cat $id.state) in
    --state=PENDING*:PENDING* | $id:PENDING*) echo 'CANCELLED|None|' > $id.state ;;
    --batch*:RUNNING*) kill -TERM $(cat $id.process) ;;
    $id:RUNNING*) echo CANCELLED > $id.end; kill -KILL $(cat $id.process) ;;
esac
exit 0
"#;

/// A folder with a cluster.
struct Cluster {
    space: Space,
}

impl Cluster {
    fn new() -> Self {
        let space = Space::new();
        space.write("imp-flow.toml", "executor = \"slurm\"\nretry_seconds = 0\n[slurm]\npoll_seconds = 1\n");
        for (name, script) in
            [("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL), ("sacct", "#!/bin/sh\nexit 1\n")]
        {
            space.write(&format!("bin/{name}"), script);
            fs::set_permissions(space.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        space.write("bin/scontrol", "#!/bin/sh\necho 'JobId=1 ExitCode=0:9'\n");
        fs::set_permissions(space.path("bin/scontrol"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(space.path("fake")).unwrap();
        Self { space }
    }

    /// With one stage of so many steps of a tenth of a second.
    fn with_steps(steps: usize) -> Self {
        let cluster = Self::new();
        cluster.space.write(
            "p.toml",
            format!("name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = {steps}\nstep_ms = 100\n"),
        );
        cluster
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.space.command(args);
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", self.space.path("bin").display()))
            .env("FAKE", self.space.path("fake"));
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.space.output(&mut self.command(args))
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn succeed(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(output.code, Some(0), "{args:?}\n{}\n{}", output.stdout, output.stderr);
        output
    }

    /// What the cluster has in a file, if there is one.
    fn fake(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.space.path("fake").join(file)).ok().map(|text| text.trim().to_string())
    }

    fn jobs(&self) -> usize {
        self.fake("count").map_or(0, |count| count.parse().unwrap())
    }

    /// Waits for a checkpoint of a job or an element of it, then ends the job as Slurm would.
    fn end(&self, number: usize, state: &str, element: Option<usize>) {
        let id = element.map_or_else(|| number.to_string(), |element| format!("{number}_{element}"));
        self.wait_for_progress();
        self.space.write(&format!("fake/{id}.end"), state);
        self.kill(&id);
    }

    /// Waits until the present job has reported a step.
    fn wait_for_progress(&self) {
        let has_progress = |path: PathBuf| {
            let is_events = path.file_name()?.to_str()?.starts_with("events-");
            fs::read_to_string(path).ok().filter(|text| is_events && text.contains("\"progress\""))
        };
        wait_for("progress", || {
            let works = fs::read_dir(self.space.path("cache/work")).ok()?.flatten();
            let files = works.flat_map(|work| fs::read_dir(work.path()).into_iter().flatten().flatten());
            files.map(|entry| entry.path()).find_map(has_progress)
        });
    }

    /// Waits until `status` shows the steps of so many stages: before they listen, a signal just ends them.
    fn wait_for_steps(&self, stages: usize) {
        wait_for("steps", || (self.run(&["status"]).stdout.matches(" steps").count() == stages).then_some(()));
    }

    /// Waits until `status` shows it.
    fn wait_for_status(&self, words: &str) {
        wait_for(words, || self.run(&["status"]).stdout.contains(words).then_some(()));
    }

    fn kill(&self, id: &str) {
        let process = wait_for("the job", || self.fake(&format!("{id}.process"))?.parse().ok());
        signal("KILL", process);
    }

    fn work(&self) -> PathBuf {
        fs::read_dir(self.space.path("cache/work")).unwrap().next().unwrap().unwrap().path()
    }
}

fn stderr(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

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
    let mut runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_progress();
    runner.kill().unwrap();
    runner.wait().unwrap();
    let status = cluster.succeed(&["status"]).stdout;
    assert!(status.contains("running   a  job 1: ") && status.contains("follows it again"), "{status}");
    // Garbage collection leaves it what it needs.
    cluster.succeed(&["cache", "gc", "--keep", "0"]);
    // Another run at the same time submits it as little as this one.
    let second = cluster.start(&["run", "p.toml"]);
    let output = cluster.succeed(&["run", "p.toml"]);
    assert_eq!(stderr(second).0, Some(0), "{}", output.stderr);
    assert_eq!(cluster.jobs(), 1);
    // Of a closed terminal the job hears nothing.
    let args = ["run", "p.toml", "--set", "stages.a.text=other"];
    let runner = cluster.start(&args);
    cluster.wait_for_progress();
    signal("HUP", runner.id());
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
    let mut runner = cluster.start(&["run", "p.toml"]);
    wait_for("the job", || cluster.fake("1.process"));
    runner.kill().unwrap();
    runner.wait().unwrap();
    fs::remove_file(cluster.space.path("fake/slow")).unwrap();
    let output = cluster.succeed(&["run", "p.toml"]);
    assert!(output.stderr.contains("submitted it as job 1"), "{}", output.stderr);
    assert_eq!(cluster.jobs(), 1);
}

#[test]
fn a_job_that_was_given_up_does_nothing_when_it_starts_at_last() {
    let cluster = Cluster::with_steps(20);
    cluster.space.write("fake/hold", "Priority");
    let mut runner = cluster.start(&["run", "p.toml"]);
    cluster.wait_for_status("job 1: PENDING");
    runner.kill().unwrap();
    runner.wait().unwrap();
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
        ["writes its output in ", "/node/jobs/imp-flow-", "goes on from its checkpoint", "takes its output into "]
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
