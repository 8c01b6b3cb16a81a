//! Submits stages that become ready at the same time, and ask for the same, as one array of jobs: one call, and one entry in the queue.
//! Each element works in the folder of its own stage. Independent of what comes after.
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
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use imp_stages::contract::job;
use tokio::sync::oneshot;

use super::{
    call::call,
    submission::{JobId, Submission},
    submit::{Attempt, SCRIPT, Submitted, escaped, plain, remove, token, unheard, write_script},
};
use crate::store::SUBMISSION;

/// The time without another stage after which those that are ready are submitted, and the longest that one waits for others.
const QUIET: Duration = Duration::from_millis(300);
const LONGEST: Duration = Duration::from_secs(5);
/// The most elements of an array. Slurm's own limit (`MaxArraySize`) is 1001 by default.
const MOST: usize = 1000;
/// How long a folder is left alone in any case.
const NEW: Duration = Duration::from_hours(1);
/// The folder of all arrays, beside the work folders.
const FOLDER: &str = "arrays";

/// The stages that wait to be submitted with others.
#[derive(Debug, Clone, Default)]
pub(super) struct Arrays(Arc<Mutex<Vec<Waiting>>>);

#[derive(Debug)]
struct Waiting {
    attempt: Attempt,
    answer: oneshot::Sender<io::Result<Submitted>>,
}

impl Arrays {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits a stage, with those that come at about the same time and ask for the same.
    pub(super) async fn submit(&self, attempt: Attempt) -> io::Result<Submitted> {
        let (answer, answered) = oneshot::channel();
        let is_first = {
            let mut waiting = self.waiting();
            waiting.push(Waiting { attempt, answer });
            waiting.len() == 1
        };
        if is_first {
            tokio::spawn(self.clone().collect());
        }
        answered.await.unwrap_or_else(|_| Err(io::Error::other("the submission was given up")))
    }

    /// Waits until no more stages come, and submits those that are there.
    async fn collect(self) {
        let (began, mut count) = (Instant::now(), 0);
        loop {
            let now = self.waiting().len();
            if now == count || began.elapsed() > LONGEST {
                break;
            }
            count = now;
            tokio::time::sleep(QUIET).await;
        }
        let ready = std::mem::take(&mut *self.waiting());
        for group in groups(ready) {
            let (attempts, answers): (Vec<_>, Vec<_>) =
                group.into_iter().map(|Waiting { attempt, answer }| (attempt, answer)).unzip();
            for (answer, submitted) in answers.into_iter().zip(submit(attempts).await) {
                // A run that has ended finds the job the next time.
                let _ = answer.send(submitted);
            }
        }
    }
}

/// Stages that ask for the same, in the order in which they came.
fn groups(waiting: Vec<Waiting>) -> Vec<Vec<Waiting>> {
    let asked = |attempt: &Attempt| {
        let Attempt { request, environment, .. } = attempt;
        let script = request.stage(Path::new(""), Path::new(""), "");
        (request.arguments("", "", &request.signal()), request.gpus, script, environment.clone())
    };
    let mut groups: Vec<Vec<Waiting>> = Vec::new();
    for new in waiting {
        let fits = |group: &&mut Vec<Waiting>| group.len() < MOST && asked(&group[0].attempt) == asked(&new.attempt);
        match groups.iter_mut().find(fits) {
            Some(group) => group.push(new),
            None => groups.push(vec![new]),
        }
    }
    groups
}

/// Submits stages that ask for the same. What came of it, in the same order.
async fn submit(attempts: Vec<Attempt>) -> Vec<io::Result<Submitted>> {
    if attempts.len() > 1 {
        match as_array(&attempts).await {
            Ok(Some(submitted)) => return submitted,
            // Each by itself is told why it can't be submitted, and some may still find room.
            Ok(None) => {}
            Err(error) => tracing::warn!("stages are submitted one by one: {error}"),
        }
    }
    let mut submitted = Vec::with_capacity(attempts.len());
    for attempt in attempts {
        submitted.push(attempt.submit().await);
    }
    submitted
}

/// Submits an array. `None` if Slurm has refused it: then there is no job.
async fn as_array(attempts: &[Attempt]) -> io::Result<Option<Vec<io::Result<Submitted>>>> {
    let Attempt { request, work, environment, .. } = &attempts[0];
    let all = work.parent().unwrap_or(work).join(FOLDER);
    clean(&all);
    let array = token(work);
    let folder = all.join(&array);
    fs::create_dir_all(&folder)?;
    let name = format!("{}-{array}", plain(&request.name));
    let submissions: Vec<Submission> = (0..)
        .zip(attempts)
        .map(|(element, attempt)| attempt.submission(token(&attempt.work), name.clone(), Some(element)))
        .collect();
    let script = folder.join(SCRIPT);
    write_script(&script, &self::script(attempts, &submissions)?)?;
    for ((attempt, submission), element) in attempts.iter().zip(&submissions).zip(0..) {
        let work = &attempt.work;
        Submission::forget(work)?;
        symlink(work.join(job::LOG), folder.join(u32::to_string(&element)))?;
        // For people: Slurm has a copy of its own.
        remove(&work.join(SCRIPT))?;
        symlink(&script, work.join(SCRIPT))?;
        submission.begin(work)?;
    }
    let mut arguments = request.arguments(&name, &(escaped(&folder) + "/%a"), &request.signal());
    // Before the user's own, which come last.
    arguments.insert(0, format!("--array=0-{}", attempts.len() - 1));
    arguments.push(script.to_string_lossy().into_owned());
    let answer = match call("sbatch", &arguments, environment).await {
        Ok(answer) => answer,
        Err(why) => return Ok(Some(attempts.iter().map(|_| Ok(unheard(&why))).collect())),
    };
    let Some(job) = answer.job() else {
        if answer.is_unclear() {
            return Ok(Some(attempts.iter().map(|_| Ok(unheard(&answer.errors))).collect()));
        }
        for attempt in attempts {
            Submission::forget(&attempt.work)?;
        }
        fs::remove_dir_all(&folder)?;
        return Ok(None);
    };
    let given = attempts.iter().zip(submissions).map(|(attempt, submission)| {
        let job = JobId { element: submission.element, ..job.clone() };
        submission.given(&attempt.work, job)
    });
    Ok(Some(given.collect()))
}

/// The script of all elements: each becomes the stage of its place.
fn script(attempts: &[Attempt], submissions: &[Submission]) -> io::Result<Vec<u8>> {
    let program = std::env::current_exe()?;
    let mut script = attempts[0].request.head();
    script.extend(b"case $SLURM_ARRAY_TASK_ID in\n");
    for ((attempt, submission), element) in attempts.iter().zip(submissions).zip(0_u32..) {
        script.extend(format!("{element}) ").bytes());
        script.extend(attempt.request.stage(&program, &attempt.work, &submission.token));
        script.extend(b" ;;\n");
    }
    script.extend(b"esac\nexit 1\n");
    Ok(script)
}

/// Removes the folders of arrays of which no stage is at work any more.
fn clean(all: &Path) {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let is_at_work = |link: &PathBuf| {
        fs::read_link(link).is_ok_and(|log| log.parent().is_some_and(|work| work.join(SUBMISSION).exists()))
    };
    // Another runner may be about to fill it.
    let is_new = |folder: &PathBuf| {
        let age = folder.metadata().and_then(|about| about.modified()).map(|at| at.elapsed().unwrap_or_default());
        age.is_ok_and(|age| age < NEW)
    };
    for folder in entries(all) {
        if !is_new(&folder) && !entries(&folder).iter().any(is_at_work) {
            // If this fails, the next array tries again.
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use imp_stages::contract::bytes::ByteSize;

    use super::*;
    use crate::executor::slurm::Request;

    fn attempt(name: &str, cpus: usize, work: &Path) -> Attempt {
        let request = Request {
            name: name.into(),
            cpus: Some(cpus),
            gpus: 0,
            memory: Some(ByteSize(1)),
            options: imp_stages::contract::executor::SlurmOptions::default(),
            save: Duration::from_secs(90),
        };
        Attempt { request, work: work.into(), environment: Vec::new(), reached: None, stuck: 0 }
    }

    #[test]
    fn only_stages_that_ask_for_the_same_become_one_array() {
        let waiting =
            |(name, cpus)| Waiting { attempt: attempt(name, cpus, Path::new("w")), answer: oneshot::channel().0 };
        let groups = groups([("a", 1), ("b", 2), ("c", 1)].map(waiting).into());
        let names: Vec<Vec<&str>> = groups
            .iter()
            .map(|group| group.iter().map(|waiting| waiting.attempt.request.name.as_str()).collect())
            .collect();
        assert_eq!(names, [vec!["a", "c"], vec!["b"]]);
    }

    #[test]
    fn each_element_becomes_its_own_stage() {
        let folder = tempfile::tempdir().unwrap();
        let attempts = ["it's a", "b"].map(|name| attempt(name, 1, &folder.path().join(name)));
        let submissions: Vec<Submission> =
            (0..).zip(&attempts).map(|(n, attempt)| attempt.submission(format!("t{n}"), "n".into(), Some(n))).collect();
        let text = String::from_utf8(script(&attempts, &submissions).unwrap()).unwrap();
        // What would become the stage says what it is.
        let path = folder.path().join("script");
        fs::write(&path, text.replace("exec ", "echo ")).unwrap();
        let says = |element: &str| {
            let output =
                std::process::Command::new("sh").arg(&path).env("SLURM_ARRAY_TASK_ID", element).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        };
        let expected = format!("__stage {}/it's a/job.json --attempt t0\n", folder.path().display());
        assert!(says("0").ends_with(&expected), "{}", says("0"));
        assert!(says("1").ends_with("/b/job.json --attempt t1\n") && says("2").is_empty());
    }
}
