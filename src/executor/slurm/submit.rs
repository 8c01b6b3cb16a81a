//! Submits a stage: the script, the arguments of `sbatch`, and what its refusals mean. Independent of what comes after.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use imp_stages::contract::{bytes::ByteSize, executor::SlurmOptions, job};

use super::{
    call::{Answer, call},
    follow::add_to_log,
    submission::{JobId, Submission},
};
use crate::{
    executor::{Outcome, local::KEEP_MEMORY},
    store::Digest,
};

/// What a stage needs.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(super) name: String,
    /// The site's default if `None`.
    pub(super) cpus: Option<usize>,
    pub(super) gpus: usize,
    pub(super) memory: Option<ByteSize>,
    pub(super) options: SlurmOptions,
    /// How long before the end of its time it is asked to save.
    pub(super) save: Duration,
}

pub(super) const SCRIPT: &str = "slurm.sh";
/// How the log of each attempt begins.
pub(crate) const SUBMITTING: &str = "submitting to Slurm";

/// What came of submitting a stage.
#[derive(Debug, PartialEq)]
pub(super) enum Submitted {
    Job(Submission, JobId),
    /// The queue takes no more jobs of this user now, in Slurm's words.
    Full(String),
    Refused(Outcome),
}

/// An attempt at a stage that is to be submitted.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) request: Request,
    pub(super) work: PathBuf,
    pub(super) environment: Vec<(&'static str, String)>,
    /// How far the attempt before it had come, and how many came no further.
    pub(super) reached: Option<(String, u64)>,
    pub(super) stuck: u32,
}

impl Attempt {
    /// Submits a job of its own.
    pub(super) async fn submit(self) -> io::Result<Submitted> {
        let Self { request, work, environment, .. } = &self;
        Submission::forget(work)?;
        let token = token(work);
        write_script(&work.join(SCRIPT), &request.script(&std::env::current_exe()?, work, &token))?;
        let name = format!("{}-{token}", plain(&request.name));
        let submission = self.submission(token, name, None);
        submission.begin(work)?;
        let mut arguments = request.arguments(&submission.name, &escaped(&work.join(job::LOG)), &request.signal());
        arguments.push(work.join(SCRIPT).to_string_lossy().into_owned());
        let answer = match call("sbatch", &arguments, environment).await {
            Ok(answer) => answer,
            Err(why) => return Ok(unheard(&why)),
        };
        match answer.job() {
            Some(job) => submission.given(work, job),
            None => refused(work, &submission.asked, &answer),
        }
    }

    /// What is left in its folder, so that a job is found again.
    pub(super) fn submission(&self, token: String, name: String, element: Option<u32>) -> Submission {
        let asked = self.request.asked();
        Submission { token, name, element, job: None, asked, reached: self.reached.clone(), stuck: self.stuck }
    }
}

impl Submission {
    /// Leaves a trace before the job exists, for the case that this runner dies now.
    pub(super) fn begin(&self, work: &Path) -> io::Result<()> {
        add_to_log(work, SUBMITTING);
        self.write(work)
    }

    /// Writes down the job that it was given.
    pub(super) fn given(self, work: &Path, job: JobId) -> io::Result<Submitted> {
        let submission = Self { job: Some(job.clone()), ..self };
        submission.write(work)?;
        Ok(Submitted::Job(submission, job))
    }
}

impl Answer {
    /// The job that `sbatch` has made. Sites write greetings around its number.
    pub(super) fn job(&self) -> Option<JobId> {
        self.out.lines().rev().find_map(JobId::parse).filter(|_| self.ok)
    }

    /// Whether the job may exist although there is no number.
    pub(super) fn is_unclear(&self) -> bool {
        self.ok || UNHEARD.iter().any(|words| self.errors.contains(words))
    }
}

/// That `sbatch` did not answer. The job may exist all the same: the trace stays, and the next attempt looks for it.
pub(super) fn unheard(why: &str) -> Submitted {
    Submitted::Refused(failed(format!("it can't be submitted: {why}"), None, true))
}

/// Writes a script that can be run, in place of what is there: that may be a link to the script of an array.
pub(super) fn write_script(path: &Path, script: &[u8]) -> io::Result<()> {
    remove(path)?;
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Removes a file or a link, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A path as `--output` takes it: `%` has a meaning there.
pub(super) fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

impl Request {
    /// The script of the job.
    fn script(&self, program: &Path, work: &Path, token: &str) -> Vec<u8> {
        let mut script = self.head();
        script.extend(self.stage(program, work, token));
        script.push(b'\n');
        script
    }

    /// How a script begins. Only what it needs to find its way: the environment comes through `sbatch`.
    pub(super) fn head(&self) -> Vec<u8> {
        let mut lines = vec![
            "#!/bin/sh".to_string(),
            "# Written by imp-flow, and submitted with sbatch.".into(),
            "export RAYON_NUM_THREADS=\"${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}\"".into(),
        ];
        if self.gpus == 0 {
            // What the runner sees is not there.
            lines.push("export CUDA_VISIBLE_DEVICES=''".into());
        }
        // The user's environment takes precedence.
        lines.extend(KEEP_MEMORY.iter().map(|(name, value)| format!("export {name}=\"${{{name}-{value}}}\"")));
        (lines.join("\n") + "\n").into_bytes()
    }

    /// The command that becomes the stage.
    pub(super) fn stage(&self, program: &Path, work: &Path, token: &str) -> Vec<u8> {
        let mut command = b"exec ".to_vec();
        command.extend(quoted(program.as_os_str()));
        command.extend(b" __stage ");
        command.extend(quoted(work.join(job::JOB).as_os_str()));
        command.extend(format!(" --attempt {token}").bytes());
        if let Some(folder) = &self.options.work {
            // Nothing in it means more to a shell than the variables.
            command.extend(format!(" --output \"{}\"", folder.0).bytes());
        }
        command
    }

    /// The batch script's process alone gets it: that asks the stage to save.
    pub(super) fn signal(&self) -> String {
        format!("B:TERM@{}", self.save_seconds())
    }

    /// All but the script.
    pub(super) fn arguments(&self, name: &str, log: &str, signal: &str) -> Vec<String> {
        let SlurmOptions { partition, account, qos, time, arguments, .. } = &self.options;
        let mut all = vec![
            "--parsable".to_string(),
            format!("--job-name={name}"),
            format!("--output={log}"),
            "--open-mode=append".into(),
            "--export=ALL".into(),
            "--requeue".into(),
            "--nodes=1".into(),
            "--ntasks=1".into(),
            format!("--signal={signal}"),
        ];
        all.extend(self.cpus.map(|cpus| format!("--cpus-per-task={cpus}")));
        all.extend(self.memory.map(|memory| format!("--mem={}M", memory.0.div_ceil(1 << 20))));
        all.extend(self.gres());
        all.extend(time.as_ref().map(|time| format!("--time={}", time.0)));
        let named = [("partition", partition), ("account", account), ("qos", qos)];
        all.extend(named.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?))));
        all.extend(arguments.iter().map(|argument| argument.0.clone()));
        all
    }

    /// At most half of its time, so that it comes to work at all.
    pub(super) fn save_seconds(&self) -> u64 {
        let time = self.options.time.as_ref().and_then(|time| seconds(&time.0));
        time.map_or(self.save.as_secs(), |time| self.save.as_secs().min(time / 2))
    }

    fn gres(&self) -> Option<String> {
        let kind = self.options.gpu_type.as_ref().map(|kind| format!(":{kind}")).unwrap_or_default();
        (self.gpus > 0).then(|| format!("--gres=gpu{kind}:{}", self.gpus))
    }

    /// What was asked for, in words: `partition gpu, 8 CPUs, 1 GPU, 16 GB of memory, 12:00:00`.
    pub(super) fn asked(&self) -> String {
        let SlurmOptions { partition, account, qos, time, gpu_type, arguments, .. } = &self.options;
        let named = [("partition", partition), ("account", account), ("qos", qos)];
        let mut words: Vec<String> =
            named.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?))).collect();
        let count = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        words.extend(self.cpus.map(|cpus| count(cpus, "CPU")));
        let gpu = gpu_type.as_ref().map_or_else(|| "GPU".into(), |kind| format!("{kind} GPU"));
        words.extend((self.gpus > 0).then(|| count(self.gpus, &gpu)));
        words.extend(self.memory.map(|memory| format!("{memory} of memory")));
        words.extend(time.as_ref().map(|time| format!("a time of {}", time.0)));
        words.extend(arguments.iter().map(|argument| argument.0.clone()));
        if words.is_empty() { "the site's defaults".into() } else { words.join(", ") }
    }
}

/// What it means that `sbatch` did not give a number.
fn refused(work: &Path, asked: &str, answer: &Answer) -> io::Result<Submitted> {
    let errors = if answer.errors.trim().is_empty() { "it gave no number" } else { answer.errors.trim() };
    if answer.is_unclear() {
        return Ok(Submitted::Refused(failed(format!("it can't be submitted now: {errors}"), None, true)));
    }
    Submission::forget(work)?;
    let errors = errors.replace("Batch job submission failed: ", "").replace('\n', "; ");
    if FULL.iter().any(|words| errors.contains(words)) {
        return Ok(Submitted::Full(errors));
    }
    let message = format!("Slurm refused it: {errors}\nit asks for {asked}");
    Ok(Submitted::Refused(failed(message, Some(meaning(&errors)), false)))
}

/// What to do about a refusal.
pub(super) fn meaning(errors: &str) -> &'static str {
    let known = MEANINGS.iter().find(|(words, _)| errors.contains(words)).map(|(_, help)| *help);
    known.unwrap_or("`sbatch` said this; change [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]")
}

/// Parts of what is said when there is no answer. The job may exist all the same.
const UNHEARD: [&str; 6] = [
    "Unable to contact slurm controller",
    "Connection refused",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "temporarily unable",
    "Connection timed out",
];
/// Parts of refusals that pass.
const FULL: [&str; 2] = ["MaxSubmitJob", "MaxJobCount"];

/// Parts of refusals, and what to do about them.
const MEANINGS: &[(&str, &str)] = &[
    (
        "artition",
        "change `partition` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; `sinfo` lists the partitions",
    ),
    ("account", "change `account` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("qos", "change `qos` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("ime limit", "change `time` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    (
        "configuration is not available",
        "no node of the partition has as much: request less under [stages.NAME.runtime], or another `partition`; `sinfo -Nel` shows \
         what nodes have",
    ),
    ("gres", "no node has such GPUs: change `gpu_type` or `gpus`; `sinfo -o '%P %G'` shows what nodes have"),
    ("emory", "request less `memory` under [stages.NAME.runtime]; `sinfo -Nel` shows what nodes have"),
    ("unrecognized option", "remove it from `arguments` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
    ("invalid option", "remove it from `arguments` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]"),
];

fn failed(message: String, help: Option<&str>, transient: bool) -> Outcome {
    Outcome::Failed { message, help: help.map(Into::into), transient }
}

/// A time as Slurm writes it, in seconds: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
/// days-hours:minutes:seconds (<https://slurm.schedmd.com/sbatch.html#OPT_time>). `None` if there is no limit.
fn seconds(time: &str) -> Option<u64> {
    let numbers = |text: &str| text.split(':').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<_>>>();
    let (days, units, rest) = if let Some((days, rest)) = time.split_once('-') {
        (days.parse().ok()?, &[3600, 60, 1][..], numbers(rest)?)
    } else {
        let rest = numbers(time)?;
        (0, if rest.len() == 3 { &[3600, 60, 1][..] } else { &[60, 1][..] }, rest)
    };
    Some(days * 86_400 + rest.iter().zip(units).map(|(number, unit)| number * unit).sum::<u64>())
}

/// A name for an attempt that no other has.
pub(super) fn token(work: &Path) -> String {
    let question = format!("{} {:?} {}", std::process::id(), std::time::SystemTime::now(), work.display());
    Digest::of(question.as_bytes()).hex()[..12].to_string()
}

/// A name that needs no quoting.
pub(super) fn plain(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().take(80).map(allowed).collect()
}

/// A string for a shell, in single quotes.
pub(super) fn quoted(text: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn request(options: &str) -> Request {
        Request {
            name: "lora_rank=64/fine tune".into(),
            cpus: Some(8),
            gpus: 2,
            memory: Some(ByteSize((3 << 20) + 1)),
            options: serde_json::from_str(options).unwrap(),
            save: Duration::from_secs(90),
        }
    }

    #[test]
    fn everything_that_is_asked_for_is_an_argument_and_the_users_come_last() {
        let options = r#"{"partition": "gpu; rm -rf", "time": "1-00", "gpu_type": "a100", "arguments": ["--nice=10"]}"#;
        let arguments = request(options).arguments("name", &escaped(Path::new("/a%j/b/log")), "B:TERM@90");
        for expected in [
            "--parsable",
            "--output=/a%%j/b/log",
            "--open-mode=append",
            "--signal=B:TERM@90",
            "--cpus-per-task=8",
            "--mem=4M",
            "--gres=gpu:a100:2",
            "--time=1-00",
            "--partition=gpu; rm -rf",
        ] {
            assert!(arguments.iter().any(|argument| argument == expected), "{expected}: {arguments:?}");
        }
        assert_eq!(arguments.last().unwrap(), "--nice=10");
        let asked = "partition gpu; rm -rf, 8 CPUs, 2 a100 GPUs, 3.1 MB of memory, a time of 1-00, --nice=10";
        assert_eq!(request(options).asked(), asked);
        let least = Request { cpus: None, gpus: 0, memory: None, ..request("{}") };
        assert!(!least.arguments("n", "/w", "B:TERM@90").iter().any(|argument| argument.contains("gres")));
        assert_eq!(least.asked(), "the site's defaults");
    }

    #[test]
    fn a_short_job_is_asked_to_save_when_half_of_its_time_is_over() {
        for (time, expected) in [
            ("30", 1800),
            ("1:30", 90),
            ("2:00:00", 7200),
            ("1-12", 129_600),
            ("1-0:30", 88_200),
            ("2-00:00:01", 172_801),
        ] {
            assert_eq!(seconds(time), Some(expected), "{time}");
        }
        assert_eq!(seconds("UNLIMITED"), None);
        let save = |time: &str| request(&format!(r#"{{"time": "{time}"}}"#)).save_seconds();
        assert_eq!([save("1"), save("3"), save("UNLIMITED")], [30, 90, 90]);
    }

    #[test]
    fn the_script_is_safe_with_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("it's a $(touch bad) \"folder\"\nwith `lines`");
        fs::create_dir_all(&work).unwrap();
        let program = work.join("program");
        fs::write(&program, "#!/bin/sh\nprintf '%s|' \"$@\" \"$RAYON_NUM_THREADS\" \"$CUDA_VISIBLE_DEVICES\"\n")
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        let script = folder.path().join("script");
        fs::write(&script, Request { gpus: 0, ..request("{}") }.script(&program, &work, "abc")).unwrap();
        let mut shell = std::process::Command::new("sh");
        shell.arg(&script).env("CUDA_VISIBLE_DEVICES", "3").env("SLURM_CPUS_PER_TASK", "5").current_dir(&work);
        let output = shell.output().unwrap();
        let job = work.join("job.json");
        let expected = format!("__stage|{}|--attempt|abc|5||", job.display());
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
        assert_eq!(fs::read_dir(&work).unwrap().count(), 1, "nothing else was made");
        assert_eq!(plain("lora_rank=64/fine tune\u{1b}"), "lora_rank_64_fine_tune_");
    }

    #[test]
    fn refusals_are_told_from_silence() {
        let folder = tempfile::tempdir().unwrap();
        let said = |errors: &str| {
            let answer = Answer { ok: false, out: String::new(), errors: errors.into() };
            match refused(folder.path(), "1 CPU", &answer).unwrap() {
                Submitted::Refused(Outcome::Failed { message, help, transient }) => {
                    (message, help.unwrap_or_default(), transient)
                }
                other => (format!("{other:?}"), String::new(), false),
            }
        };
        let (message, help, transient) = said("Batch job submission failed: Invalid partition name specified");
        assert_eq!(message, "Slurm refused it: Invalid partition name specified\nit asks for 1 CPU");
        assert!(help.contains("`sinfo` lists the partitions") && !transient);
        assert!(said("Requested node configuration is not available").1.contains("no node of the partition"));
        assert_eq!(
            said("QOSMaxSubmitJobPerUserLimit").0,
            "Full(\"QOSMaxSubmitJobPerUserLimit\")",
            "there is room later"
        );
        assert!(said("Unable to contact slurm controller (connect failure)").2);
    }
}
