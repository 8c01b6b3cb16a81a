//! Submits stages that ask for the same: one as a job, several as an array, whose elements each work in the folder of their own stage.
//! Independent of which belong together and of what comes after.
//!
//! An array has one script and one pattern for the paths of its logs, in a folder beside those of the stages:
//!
//! ```text
//! arrays/TOKEN/slurm.sh   what was submitted; each stage's folder has a link to it
//! arrays/TOKEN/N          a link to the log of the stage that is element N
//! ```

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use imp_stages::contract::job;

use super::{
    call::call,
    follow::add_to_log,
    refusal::Refusal,
    request::Request,
    shell::{escaped, plain, remove, token, write_script},
    submission::{JobId, Submission},
};
use crate::{
    executor::Outcome,
    store::{ARRAYS, idle_arrays},
};

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
    /// What its job file says.
    pub(super) job: Vec<u8>,
    /// How far the attempt before it had come, and how many came no further.
    pub(super) reached: Option<(String, u64)>,
    pub(super) stuck: u32,
}

impl Attempt {
    /// What is left in its folder, so that a job is found again.
    fn submission(&self, name: &str, element: Option<u32>) -> Submission {
        Submission {
            token: token(&self.work),
            name: name.into(),
            element,
            job: None,
            asked: self.request.asked(),
            reached: self.reached.clone(),
            stuck: self.stuck,
        }
    }

    /// Leaves a trace before the job exists, for the case that this runner dies now.
    fn begin(&self, submission: &Submission) -> io::Result<()> {
        Submission::forget(&self.work)?;
        // One that is left may be that of an earlier run, which asked for something else.
        fs::write(self.work.join(job::JOB), &self.job)?;
        add_to_log(&self.work, SUBMITTING);
        submission.write(&self.work)
    }
}

/// Submits attempts, of which there is one or more, with one call: what became of each, in the same order; or why none is taken.
///
/// # Errors
/// If a folder can't be written.
pub(super) async fn submit(attempts: &[&Attempt]) -> io::Result<Result<Vec<Submitted>, Refusal>> {
    let Attempt { request, work, environment, .. } = attempts[0];
    let token = token(work);
    let name = format!("{}-{token}", plain(&request.name));
    let is_array = attempts.len() > 1;
    let submissions: Vec<Submission> =
        (0..).zip(attempts).map(|(n, attempt)| attempt.submission(&name, is_array.then_some(n))).collect();
    let folder = if is_array { begin_array(attempts, &token)? } else { work.clone() };
    let script = folder.join(SCRIPT);
    write_script(&script, &self::script(attempts, &submissions)?)?;
    for (attempt, submission) in attempts.iter().zip(&submissions) {
        attempt.begin(submission)?;
    }
    let log = escaped(&folder) + "/" + if is_array { "%a" } else { job::LOG };
    let mut arguments = request.arguments(&name, &log, &request.signal());
    if is_array {
        // Before the user's own, which come last.
        arguments.insert(0, format!("--array=0-{}", attempts.len() - 1));
    }
    arguments.push(script.to_string_lossy().into_owned());
    let answer = call("sbatch", &arguments, environment).await;
    let job = match answer.map_err(Refusal::Unheard).and_then(|answer| answer.job()) {
        Ok(job) => job,
        // The trace stays, and the next attempt looks for it.
        Err(refusal @ Refusal::Unheard(_)) => return Ok(Err(refusal)),
        Err(refusal) => {
            attempts.iter().try_for_each(|attempt| Submission::forget(&attempt.work))?;
            if is_array {
                fs::remove_dir_all(&folder)?;
            }
            return Ok(Err(refusal));
        }
    };
    let given = attempts.iter().zip(submissions).map(|(attempt, submission)| {
        let job = JobId { element: submission.element, ..job.clone() };
        let submission = Submission { job: Some(job.clone()), ..submission };
        submission.write(&attempt.work)?;
        Ok(Submitted::Job(submission, job))
    });
    given.collect::<io::Result<Vec<_>>>().map(Ok)
}

/// Makes the folder of an array, and the links between it and those of its stages.
fn begin_array(attempts: &[&Attempt], token: &str) -> io::Result<PathBuf> {
    let work = &attempts[0].work;
    let works = work.parent().unwrap_or(work);
    for idle in idle_arrays(works) {
        // If this fails, the next array tries again.
        let _ = fs::remove_dir_all(idle);
    }
    let folder = works.join(ARRAYS).join(token);
    fs::create_dir_all(&folder)?;
    for (element, attempt) in (0_u32..).zip(attempts) {
        symlink(attempt.work.join(job::LOG), folder.join(element.to_string()))?;
        // For people: Slurm has a copy of its own.
        remove(&attempt.work.join(SCRIPT))?;
        symlink(folder.join(SCRIPT), attempt.work.join(SCRIPT))?;
    }
    Ok(folder)
}

/// The script of all attempts: a job becomes the stage, and an element that of its place.
fn script(attempts: &[&Attempt], submissions: &[Submission]) -> io::Result<Vec<u8>> {
    Ok(script_for(&program()?, attempts, submissions))
}

/// The path of this program when it was asked first. Once another is installed in its place, the system calls this one deleted.
pub(super) fn program() -> io::Result<PathBuf> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    match PROGRAM.get() {
        Some(program) => Ok(program.clone()),
        None => std::env::current_exe().map(|program| PROGRAM.get_or_init(|| program).clone()),
    }
}

fn script_for(program: &Path, attempts: &[&Attempt], submissions: &[Submission]) -> Vec<u8> {
    let mut script = attempts[0].request.head();
    let stage = |(attempt, submission): (&&Attempt, &Submission)| {
        attempt.request.stage(program, &attempt.work, &submission.token)
    };
    let stages = attempts.iter().zip(submissions).map(stage);
    if let [Submission { element: None, .. }] = submissions {
        script.extend(stages.flatten());
        script.push(b'\n');
        return script;
    }
    script.extend(b"case $SLURM_ARRAY_TASK_ID in\n");
    for (element, stage) in stages.enumerate() {
        script.extend(format!("{element}) ").bytes());
        script.extend(stage);
        script.extend(b" ;;\n");
    }
    script.extend(b"esac\nexit 1\n");
    script
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{ffi::OsStr, os::unix::fs::PermissionsExt, process::Command, time::Duration};

    use imp_stages::contract::executor::SlurmOptions;

    use super::*;

    fn attempt(work: &Path) -> Attempt {
        let request = Request {
            name: "a".into(),
            cpus: Some(1),
            gpus: 0,
            memory: None,
            options: SlurmOptions::default(),
            save: Duration::from_secs(90),
        };
        Attempt { request, work: work.into(), environment: Vec::new(), job: b"{}".into(), reached: None, stuck: 0 }
    }

    /// A program that prints its arguments and what the script has set.
    fn program(folder: &Path) -> PathBuf {
        let program = folder.join("program");
        fs::write(&program, "#!/bin/sh\nprintf '%s|' \"$@\" \"$RAYON_NUM_THREADS\" \"$CUDA_VISIBLE_DEVICES\"\n")
            .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        program
    }

    fn says(script: &[u8], folder: &Path, element: &str) -> String {
        let path = folder.join("script");
        write_script(&path, script).unwrap();
        let mut shell = Command::new("sh");
        shell.arg(&path).env("CUDA_VISIBLE_DEVICES", "3").env("SLURM_CPUS_PER_TASK", "5").current_dir(folder);
        let output = shell.env("SLURM_ARRAY_TASK_ID", OsStr::new(element)).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn the_script_is_safe_with_any_path() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path().join("it's a $(touch bad) \"folder\"\nwith `lines`");
        fs::create_dir_all(&work).unwrap();
        let attempt = attempt(&work);
        let submission = attempt.submission("n", None);
        let script = script_for(&program(&work), &[&attempt], std::slice::from_ref(&submission));
        let expected = format!("__stage|{}|--attempt|{}|5||", work.join("job.json").display(), submission.token);
        assert_eq!(says(&script, folder.path(), ""), expected);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing else was made");
        assert_eq!(plain("lora_rank=64/fine tune\u{1b}"), "lora_rank_64_fine_tune_");
    }

    #[test]
    fn each_element_becomes_its_own_stage() {
        let folder = tempfile::tempdir().unwrap();
        let attempts = ["it's a", "b"].map(|name| attempt(&folder.path().join(name)));
        let attempts: Vec<&Attempt> = attempts.iter().collect();
        let submissions = [0, 1].map(|n| attempts[n as usize].submission("n", Some(n)));
        let script = script_for(&program(folder.path()), &attempts, &submissions);
        for (element, work) in [("0", "it's a"), ("1", "b")] {
            let token = &submissions[element.parse::<usize>().unwrap()].token;
            let job = folder.path().join(work).join("job.json");
            let expected = format!("__stage|{}|--attempt|{token}|5||", job.display());
            assert_eq!(says(&script, folder.path(), element), expected);
        }
        assert_eq!(says(&script, folder.path(), "2"), "");
    }
}
