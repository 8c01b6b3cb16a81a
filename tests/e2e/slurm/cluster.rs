//! A cluster of one machine: shell scripts that stand in for the programs of Slurm.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    interrupt::{signal, wait_for},
    support::{Output, Space},
};

/// Starts the script as a process of its own, once there is no file `hold`. A file `refuse` is what it says instead, and a file
/// `too-many` what it says of an array of more elements than the file `most` has. A file `slow` lets it register the job and never
/// answer, and a file `mute` not even that.
const SBATCH: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
echo x >> calls
[ -f mute ] && exec sleep 1000
[ -f refuse ] && { cat refuse >&2; exit 1; }
until mkdir busy 2> /dev/null; do sleep 0.01; done
printf '%s\n' "$@" > arguments
elements=
for argument; do
    case $argument in
        --output=*) log=${argument#*=} ;;
        --job-name=*) name=${argument#*=} ;;
        --wrap=*) wrapped=${argument#*=} ;;
        --array=0-*)
            [ -f most ] && [ $((${argument#--array=0-} + 1)) -gt $(cat most) ] && { rmdir busy; cat too-many >&2; exit 1; }
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

/// Prints the jobs that it is asked for, of which each has a file with its state that ends so.
macro_rules! listing {
    ($ending:literal) => {
        concat!(
            "for state in *.",
            $ending,
            r#"; do
    [ -f "$state" ] || continue
    id=${state%.*}
    line="$id|$(cat $state)|$(cat partitions 2> /dev/null || echo main)|$(cat $id.name)"
    for argument; do
        case $argument in
            --jobs=*) case ",${argument#*=}," in *",$id,"*) echo "$line" ;; esac ;;
            --name=*) case ",${argument#*=}," in *",$(cat $id.name),"*) echo "$line" ;; esac ;;
        esac
    done
done
exit 0
"#
        )
    };
}

/// What the real one refuses it refuses, as does `sacct`.
const SQUEUE: &str = concat!(
    r#"#!/bin/sh
cd "$FAKE" || exit 1
echo x >> questions
for argument; do
    case $argument in
        --noheader | --array | --states=* | --format=* | --jobs=* | --clusters=* | --me) ;;
        --name=*) echo "$argument" >> look-ups ;;
        *) echo "squeue: unrecognized option '$argument'" >&2; exit 1 ;;
    esac
done
"#,
    listing!("state")
);

/// Knows the jobs that `squeue` has forgotten, in files `ID.old`, if there is a file `accounting`. `JobID|State|Reason|NodeList|Partition|JobName`.
const SACCT: &str = concat!(
    r#"#!/bin/sh
cd "$FAKE" || exit 1
for argument; do
    case $argument in
        --allocations | --noheader | --parsable2 | --starttime=* | --format=* | --jobs=* | --name=* | --clusters=*) ;;
        *) echo "sacct: unrecognized option '$argument'" >&2; exit 1 ;;
    esac
done
[ -f accounting ] || { echo 'Slurm accounting storage is disabled' >&2; exit 1; }
[ -s accounting ] && { cat accounting >&2; exit 1; }
"#,
    listing!("old")
);

const SCANCEL: &str = r#"#!/bin/sh
cd "$FAKE" || exit 1
[ -f deaf ] && { echo 'scancel: error: Unable to contact slurm controller' >&2; exit 1; }
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
pub(super) struct Cluster {
    pub(super) space: Space,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let space = Space::new();
        space.write("imp-flow.toml", "executor = \"slurm\"\nretry_seconds = 0\n[slurm]\npoll_seconds = 1\n");
        for (name, script) in [("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL), ("sacct", SACCT)] {
            space.write(&format!("bin/{name}"), script);
            fs::set_permissions(space.path(&format!("bin/{name}")), fs::Permissions::from_mode(0o755)).unwrap();
        }
        space.write("bin/scontrol", "#!/bin/sh\necho 'JobId=1 ExitCode=0:9'\n");
        fs::set_permissions(space.path("bin/scontrol"), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(space.path("fake")).unwrap();
        Self { space }
    }

    /// With one stage of so many steps of a tenth of a second.
    pub(super) fn with_steps(steps: usize) -> Self {
        let cluster = Self::new();
        cluster.space.write(
            "p.toml",
            format!("name = \"p\"\n[stages.a]\nkind = \"synthetic\"\nsteps = {steps}\nstep_ms = 100\n"),
        );
        cluster
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.space.command(args);
        let path = std::env::var("PATH").unwrap();
        command
            .env("PATH", format!("{}:{path}", self.space.path("bin").display()))
            .env("FAKE", self.space.path("fake"));
        command
    }

    pub(super) fn run(&self, args: &[&str]) -> Output {
        self.space.output(&mut self.command(args))
    }

    pub(super) fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    }

    pub(super) fn succeed(&self, args: &[&str]) -> Output {
        let output = self.run(args);
        assert_eq!(output.code, Some(0), "{args:?}\n{}\n{}", output.stdout, output.stderr);
        output
    }

    /// What the cluster has in a file, if there is one.
    pub(super) fn fake(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.space.path("fake").join(file)).ok().map(|text| text.trim().to_string())
    }

    /// Lets `squeue` forget a job that has ended.
    pub(super) fn forget(&self, id: &str) {
        wait_for("the end of the job", || {
            self.fake(&format!("{id}.state")).filter(|state| state.starts_with("COMPLETED"))
        });
        let path = |ending: &str| self.space.path("fake").join(format!("{id}.{ending}"));
        fs::rename(path("state"), path("old")).unwrap();
    }

    /// How many times `sbatch` was called.
    pub(super) fn calls(&self) -> usize {
        self.fake("calls").map_or(0, |calls| calls.lines().count())
    }

    pub(super) fn jobs(&self) -> usize {
        self.fake("count").map_or(0, |count| count.parse().unwrap())
    }

    /// Waits for a checkpoint of a job or an element of it, then ends the job as Slurm would.
    pub(super) fn end(&self, number: usize, state: &str, element: Option<usize>) {
        let id = element.map_or_else(|| number.to_string(), |element| format!("{number}_{element}"));
        self.wait_for_progress();
        self.space.write(&format!("fake/{id}.end"), state);
        self.kill(&id);
    }

    /// Waits until the present job has reported a step.
    pub(super) fn wait_for_progress(&self) {
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
    pub(super) fn wait_for_steps(&self, stages: usize) {
        wait_for("steps", || (self.run(&["status"]).stdout.matches(" steps").count() == stages).then_some(()));
    }

    /// Waits until `status` shows it.
    pub(super) fn wait_for_status(&self, words: &str) {
        wait_for(words, || self.run(&["status"]).stdout.contains(words).then_some(()));
    }

    pub(super) fn kill(&self, id: &str) {
        let process = wait_for("the job", || self.fake(&format!("{id}.process"))?.parse().ok());
        signal("KILL", process);
    }

    pub(super) fn work(&self) -> PathBuf {
        fs::read_dir(self.space.path("cache/work")).unwrap().next().unwrap().unwrap().path()
    }
}

/// Kills a runner.
pub(super) fn kill(mut runner: Child) {
    runner.kill().unwrap();
    runner.wait().unwrap();
}

pub(super) fn stderr(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}
