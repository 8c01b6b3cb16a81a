//! Runs a job on a node of a cluster, through Slurm's own programs. The job reports to a file in the work folder and does not need
//! the runner: if that dies, the next one finds the job by what lies in the folder. Independent of what the job does.

mod array;
mod ask;
mod call;
mod check;
mod detach;
mod ending;
mod follow;
mod gather;
mod queue;
mod refusal;
mod request;
mod shell;
pub(crate) mod state;
mod submission;
mod submit;
pub(crate) mod tail;

use std::{
    collections::BTreeMap,
    fs::{self, TryLockError},
    io,
    path::Path,
    time::{Duration, Instant},
};

use imp_stages::contract::{executor::SlurmOptions, job};
use tokio::{sync::watch, time::sleep};

use array::{Arrays, submit_all};
use ask::{LookUps, look_up};
pub(crate) use check::usable;
pub(crate) use detach::detach;
use ending::End;
use follow::{Follower, changed};
use queue::Queue;
pub(crate) use request::Request;
use submission::JobId;
pub(crate) use submission::{Submission, events, stop};
pub(crate) use submit::SUBMITTING;
use submit::{Attempt, Submitted};
use tail::Tail;

use super::{Outcome, Place, Report, StopSignal, Task};
use crate::{machine::Cluster, pipeline::StageDecl, store::open};

/// How long `sbatch` may take to answer once the run is to end. After that, what it makes is left to the next run.
const ANSWERS: Duration = Duration::from_secs(5);
/// How long is waited for the end of a job that was cancelled.
const ENDS: Duration = Duration::from_mins(1);

/// The cluster, and the jobs of this run on it.
#[derive(Debug, Clone)]
pub(super) struct Slurm {
    options: SlurmOptions,
    kinds: BTreeMap<String, SlurmOptions>,
    cpus: Option<usize>,
    save: Duration,
    queue: Queue,
    arrays: Arrays,
    look_ups: LookUps,
}

/// What is at work in a folder.
enum Found {
    /// This attempt, which may have ended.
    Job(Submission, JobId),
    /// An attempt of which Slurm knows nothing.
    Nothing,
    /// The stage has ended, or the run is to.
    End(Outcome),
}

/// What is known from one attempt to the next.
#[derive(Default)]
struct Tries {
    /// How far the last one had come: unit, and number done.
    reached: Option<(String, u64)>,
    /// How many came no further.
    stuck: u32,
    /// Whether this run has submitted one.
    submitted: bool,
    /// Whether it was said that the queue is full.
    full: bool,
}

impl Slurm {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let Cluster { options, kinds, cpus, save, poll, .. } = cluster.clone();
        let (arrays, look_ups) = (Arrays::default(), LookUps::default());
        // While it is where it was started.
        let _ = submit::program();
        Self { options, kinds, cpus, save, queue: Queue::new(poll), arrays, look_ups }
    }

    /// What is asked for a stage that needs so many GPUs.
    pub(super) fn request(&self, stage: &StageDecl, gpus: usize) -> Request {
        let of_kind = self.kinds.get(stage.kind).cloned().unwrap_or_default();
        Request {
            name: stage.name.clone(),
            cpus: Some(stage.cpus).filter(|cpus| *cpus > 0).or(self.cpus),
            gpus,
            memory: stage.runtime.memory,
            options: self.options.with(&of_kind).with(&stage.runtime.slurm),
            save: self.save,
        }
    }

    /// Follows the job that is at work in the task's folder. If there is none, submits one, unless the task is to run here: then
    /// returns `None`.
    pub(super) async fn run(
        &self,
        task: &Task,
        stop: &mut watch::Receiver<StopSignal>,
        report: &mut impl FnMut(Report),
    ) -> io::Result<Option<Outcome>> {
        let work = task.work.as_path();
        let mut tries = Tries::default();
        loop {
            let found = match Submission::at(work) {
                None => Found::Nothing,
                Some(found) => self.find(work, found, stop, report).await?,
            };
            let (submission, job) = match (found, &task.place) {
                (Found::Job(submission, job), _) => (submission, job),
                (Found::End(outcome), _) => return Ok(Some(outcome)),
                (Found::Nothing, _) if *stop.borrow() != StopSignal::None => return Ok(Some(Outcome::Cancelled)),
                (Found::Nothing, Place::Here(_)) => return Ok(None),
                (Found::Nothing, Place::Slurm(request)) => {
                    tries.submitted = true;
                    match self.submit(task, request, &tries, stop, report).await? {
                        Submitted::Job(submission, job) => {
                            follow::add_to_log(work, &follow::submitted_as(&job));
                            report(Report::State(format!("{job}: submitted")));
                            (submission, job)
                        }
                        Submitted::Refused(outcome) => return Ok(Some(outcome)),
                        Submitted::Full(why) => {
                            if !std::mem::replace(&mut tries.full, true) {
                                let state = format!("not submitted yet: the queue takes no more of your jobs ({why})");
                                report(Report::State(state));
                            }
                            self.pause(stop).await;
                            continue;
                        }
                    }
                }
            };
            if !tries.submitted {
                report(Report::Note(format!("an earlier run has submitted it as {job}: following that")));
            }
            let end = Follower::new(self, work, &submission, job.clone()).follow(stop, report).await?;
            self.queue.forget(&job);
            match end {
                End::Left => {
                    report(Report::Note(format!("goes on as {job}; the same command follows it")));
                    return Ok(Some(Outcome::Cancelled));
                }
                // Stays until the result is in the store: a runner that is killed before finds it again.
                End::Over(Outcome::Done) => return Ok(Some(Outcome::Done)),
                End::Over(outcome) => {
                    Submission::forget(work)?;
                    return Ok(Some(outcome));
                }
                End::Again { note, reached, stuck } => {
                    Submission::forget(work)?;
                    report(Report::Note(note));
                    tries = Tries { reached, stuck, ..tries };
                }
            }
        }
    }

    /// Submits an attempt, with others that are ready. Hears a request to stop meanwhile: what `sbatch` was not told yet it is not
    /// told, and if it does not answer soon, the job is left to the next run.
    async fn submit(
        &self,
        task: &Task,
        request: &Request,
        tries: &Tries,
        stop: &mut watch::Receiver<StopSignal>,
        report: &mut impl FnMut(Report),
    ) -> io::Result<Submitted> {
        let attempt = Attempt {
            request: request.clone(),
            work: task.work.clone(),
            environment: task.environment.clone(),
            job: task.job.clone(),
            reached: tries.reached.clone(),
            stuck: tries.stuck,
        };
        let mut asked = self.arrays.ask(attempt, submit_all);
        let given_up = || Err(io::Error::other("the submission was given up"));
        let signal = tokio::select! {
            answer = asked.answer() => return answer.unwrap_or_else(given_up),
            signal = changed(stop, StopSignal::None) => signal,
        };
        if asked.withdraw() {
            return Ok(Submitted::Refused(Outcome::Cancelled));
        }
        if signal != StopSignal::Kill {
            tokio::select! {
                answer = asked.answer() => return answer.unwrap_or_else(given_up),
                _ = changed(stop, signal) => {}
                () = tokio::time::sleep(ANSWERS) => {}
            }
        }
        if *stop.borrow() != StopSignal::Leave
            && let Some(submission) = Submission::at(&task.work)
        {
            // If there is a job, it ends as soon as it starts.
            fs::write(submission.stop(&task.work), "")?;
        }
        let note = "`sbatch` has not answered: the same command looks whether there is a job";
        report(Report::Note(note.into()));
        Ok(Submitted::Refused(Outcome::Cancelled))
    }

    /// Waits for room in the queue, or for a request to stop.
    async fn pause(&self, stop: &mut watch::Receiver<StopSignal>) {
        tokio::select! {
            () = tokio::time::sleep(self.queue.poll() * 3) => {}
            _ = changed(stop, StopSignal::None) => {}
        }
    }

    /// Finds the job of an attempt. A runner that died while it submitted has not written down its number.
    async fn find(
        &self,
        work: &Path,
        found: Submission,
        stop: &mut watch::Receiver<StopSignal>,
        report: &mut impl FnMut(Report),
    ) -> io::Result<Found> {
        if let Some(job) = found.job.clone() {
            // This run wants it, whatever the one before said.
            shell::remove(&found.stop(work))?;
            return Ok(Found::Job(found, job));
        }
        let mut asked = self.look_ups.ask((found.name.clone(), found.element), look_up);
        let answer = tokio::select! {
            answer = asked.answer() => answer.unwrap_or_else(|| Err("the question was given up".into())),
            _ = changed(stop, StopSignal::None) => return Ok(Found::End(Outcome::Cancelled)),
        };
        match answer {
            Ok(Some(job)) => {
                let found = Submission { job: Some(job.clone()), ..found };
                shell::remove(&found.stop(work))?;
                found.write(work)?;
                Ok(Found::Job(found, job))
            }
            Ok(None) => ended_alone(work, &found, report),
            Err(why) => Ok(Found::End(Outcome::Failed {
                message: format!("an earlier run was submitting it to Slurm, which does not answer: {why}"),
                help: Some("run the same command again once `squeue` answers".into()),
                transient: true,
            })),
        }
    }

    /// Ends the job whose work folder was moved to `aside`, if there is one, and waits a while for its end.
    pub(super) async fn abandon(&self, aside: &Path) {
        if let Some(Submission { job: Some(job), .. }) = Submission::at(aside)
            && let Err(error) = ask::scancel(&job, &[]).await
        {
            // It finds that its folder is gone, and ends.
            tracing::debug!("can't cancel {job}: {error}");
        }
        let start = Instant::now();
        while start.elapsed() < ENDS && is_at_work(aside) {
            sleep(Duration::from_millis(200)).await;
        }
    }
}

/// Whether a job holds the lock of a work folder.
fn is_at_work(work: &Path) -> bool {
    let lock = open(&work.join(job::LOCK));
    lock.is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// What has become of an attempt of which Slurm knows nothing any more, by what it has reported itself.
fn ended_alone(work: &Path, found: &Submission, report: &mut impl FnMut(Report)) -> io::Result<Found> {
    let mut tail = Tail::new(found.events(work));
    let mut events = Vec::new();
    tail.read(&mut |event| events.push(event))?;
    if tail.ended != Some(Outcome::Done) {
        Submission::forget(work)?;
        return Ok(Found::Nothing);
    }
    report(Report::Note("a job of an earlier run has done it".into()));
    events.into_iter().map(Report::Event).chain(tail.seconds().map(Report::Took)).for_each(report);
    Ok(Found::End(Outcome::Done))
}
