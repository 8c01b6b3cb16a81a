//! Runs a job on a node of a cluster, through Slurm's own programs. The job reports to a file in the work folder and does not need
//! the runner: if that dies, the next one finds the job by what lies in the folder. Independent of what the job does.

mod array;
mod call;
mod check;
mod detach;
mod ending;
mod follow;
mod queue;
pub(crate) mod state;
mod submission;
mod submit;
pub(crate) mod tail;

use std::{collections::BTreeMap, io, path::Path, time::Duration};

use imp_stages::contract::executor::SlurmOptions;
use tokio::sync::watch;

use array::Arrays;
pub(crate) use check::usable;
pub(crate) use detach::detach;
use ending::End;
use follow::Follower;
use queue::Queue;
use submission::JobId;
pub(crate) use submission::{Submission, events, stop};
use submit::{Attempt, Submitted};
pub(crate) use submit::{Request, SUBMITTING};

use super::{Outcome, Place, Report, StopSignal, Task};
use crate::{machine::Cluster, pipeline::StageDecl};

/// The cluster, and the jobs of this run on it.
#[derive(Debug, Clone)]
pub(super) struct Slurm {
    options: SlurmOptions,
    kinds: BTreeMap<String, SlurmOptions>,
    cpus: Option<usize>,
    save: Duration,
    queue: Queue,
    arrays: Arrays,
}

/// What is at work in a folder.
enum Found {
    /// This attempt, which may have ended.
    Job(Submission, JobId),
    /// An attempt of which Slurm knows nothing.
    Nothing,
}

impl Slurm {
    pub(super) fn new(cluster: &Cluster) -> Self {
        let Cluster { options, kinds, cpus, save, poll, .. } = cluster.clone();
        Self { options, kinds, cpus, save, queue: Queue::new(poll), arrays: Arrays::default() }
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
        let (mut reached, mut stuck) = (None, 0);
        let (mut is_found, mut is_full) = (true, false);
        loop {
            let found = match Submission::at(work) {
                None => Found::Nothing,
                Some(found) => match self.find(work, found).await? {
                    Ok(found) => found,
                    Err(outcome) => return Ok(Some(outcome)),
                },
            };
            let (submission, job) = match (found, &task.place) {
                (Found::Job(submission, job), _) => (submission, job),
                (Found::Nothing, _) if *stop.borrow() != StopSignal::None => return Ok(Some(Outcome::Cancelled)),
                (Found::Nothing, Place::Here(_)) => return Ok(None),
                (Found::Nothing, Place::Slurm(request)) => {
                    is_found = false;
                    let (request, environment) = (request.clone(), task.environment.clone());
                    let (work_folder, reached) = (task.work.clone(), reached.clone());
                    let attempt = Attempt { request, work: work_folder, environment, reached, stuck };
                    match self.arrays.submit(attempt).await? {
                        Submitted::Job(submission, job) => {
                            follow::add_to_log(work, &follow::submitted_as(&job));
                            report(Report::State(format!("{job}: submitted")));
                            (submission, job)
                        }
                        Submitted::Refused(outcome) => return Ok(Some(outcome)),
                        Submitted::Full(why) => {
                            if !std::mem::replace(&mut is_full, true) {
                                let state = format!("not submitted yet: the queue takes no more of your jobs ({why})");
                                report(Report::State(state));
                            }
                            self.pause(stop).await;
                            continue;
                        }
                    }
                }
            };
            if is_found {
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
                End::Again { note, reached: now, stuck: times } => {
                    Submission::forget(work)?;
                    report(Report::Note(note));
                    (reached, stuck) = (now, times);
                }
            }
        }
    }

    /// Waits for room in the queue, or for a request to stop.
    async fn pause(&self, stop: &mut watch::Receiver<StopSignal>) {
        tokio::select! {
            () = tokio::time::sleep(self.queue.poll() * 3) => {}
            // An error means that no request can come.
            Ok(_) = stop.wait_for(|stop| *stop != StopSignal::None) => {}
        }
    }

    /// Finds the job of an attempt. A runner that died while it submitted has not written down its number.
    async fn find(&self, work: &Path, found: Submission) -> io::Result<Result<Found, Outcome>> {
        if let Some(job) = found.job.clone() {
            return Ok(Ok(Found::Job(found, job)));
        }
        match queue::by_name(&found.name, found.element).await {
            Ok(Some(job)) => {
                let found = Submission { job: Some(job.clone()), ..found };
                found.write(work)?;
                Ok(Ok(Found::Job(found, job)))
            }
            Ok(None) => {
                Submission::forget(work)?;
                Ok(Ok(Found::Nothing))
            }
            Err(why) => Ok(Err(Outcome::Failed {
                message: format!("an earlier run was submitting it to Slurm, which does not answer: {why}"),
                help: Some("run the same command again once `squeue` answers".into()),
                transient: true,
            })),
        }
    }

    /// Ends the job that is at work in a folder, if there is one.
    pub(super) async fn abandon(&self, work: &Path) {
        let Some(Submission { job: Some(job), .. }) = Submission::at(work) else { return };
        if let Err(error) = queue::scancel(&job, &[]).await {
            // It finds that its folder is gone, and ends.
            tracing::debug!("can't cancel {job}: {error}");
        }
    }
}
