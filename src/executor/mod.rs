//! Runs the process of a stage: takes a job file, returns events and an outcome. Independent of the graph and of keys.

mod child;
mod local;
mod node;
pub(crate) mod slurm;

use std::{
    io,
    path::{Path, PathBuf},
};

use imp_stages::contract::{event::Event, job};
use tokio::sync::watch;

pub(crate) use child::{PROGRESS, run_job};
pub(crate) use slurm::{detach, usable};

use crate::{
    machine::{Allocation, Cluster},
    pipeline::StageDecl,
};

/// How the log of an attempt begins, here and on a cluster.
pub(crate) const BEGINNINGS: [&str; 2] = [child::STARTED, slurm::SUBMITTING];

/// The line on a child's standard input that requests [`StopSignal::Stop`].
const STOP: &str = "stop";

/// How the process of a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The output folder is complete.
    Done,
    /// Stopped on request, after saving a checkpoint if the stage supports it. Or left to go on without this run.
    Cancelled,
    /// The stage failed. If the failure is transient, another attempt may succeed.
    Failed { message: String, help: Option<String>, transient: bool },
}

/// What running stages should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    None,
    /// The run ends, but nobody asked for an end of its stages: what can't go on without it saves a checkpoint and ends.
    Leave,
    /// Save a checkpoint and end.
    Stop,
    /// End at once.
    Kill,
}

/// What is heard of a stage while it runs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Report {
    /// An event of the stage itself.
    Event(Event),
    /// Where it is, if not on this machine: in a queue, or on a node.
    State(String),
    /// What happens to it, in words.
    Note(String),
    /// How many seconds its process took, if that is not the time that passed here.
    Took(f64),
}

/// A stage to run.
#[derive(Debug)]
pub(crate) struct Task {
    /// Its folder.
    pub(crate) work: PathBuf,
    /// What the job file there says, as JSON.
    pub(crate) job: Vec<u8>,
    pub(crate) place: Place,
    /// Environment variables for its process.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Where a stage runs, and with what.
#[derive(Debug)]
pub(crate) enum Place {
    Here(Allocation),
    Slurm(slurm::Request),
}

impl Place {
    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Self::Here(_))
    }
}

/// All ways to run a stage.
#[derive(Debug, Clone)]
pub(crate) struct Executors {
    slurm: slurm::Slurm,
}

impl Executors {
    pub(crate) fn new(cluster: &Cluster) -> Self {
        Self { slurm: slurm::Slurm::new(cluster) }
    }

    /// The place of a stage with this allocation and so many GPUs.
    pub(crate) fn place(&self, stage: &StageDecl, allocation: Allocation, gpus: usize) -> Place {
        if allocation.elsewhere { Place::Slurm(self.slurm.request(stage, gpus)) } else { Place::Here(allocation) }
    }

    /// Runs a task to its end, and passes on what is heard of it. If a job of an earlier run still is at work in the folder, follows
    /// that, wherever the stage would run now.
    pub(crate) async fn run(
        &self,
        task: &Task,
        mut stop: watch::Receiver<StopSignal>,
        mut on_report: impl FnMut(Report),
    ) -> io::Result<Outcome> {
        if let Some(outcome) = self.slurm.run(task, &mut stop, &mut on_report).await? {
            return Ok(outcome);
        }
        let Place::Here(allocation) = &task.place else { return Ok(Outcome::Cancelled) };
        // One that is left may be that of a job elsewhere.
        std::fs::write(task.work.join(job::JOB), &task.job)?;
        local::run(&task.work, allocation, &task.environment, stop, |event| on_report(Report::Event(event))).await
    }

    /// Ends what still is at work in a work folder, which was moved to `aside`.
    pub(crate) async fn abandon(&self, aside: &Path) {
        self.slurm.abandon(aside).await;
    }
}
