//! Where the process of a stage runs. Independent of the graph and of keys: it gets a job file and returns events and an
//! outcome.

mod child;
mod local;

pub(crate) use child::{STARTED, run_job};
pub(crate) use local::run;

/// The line on a child's standard input that requests [`StopSignal::Stop`].
const STOP: &str = "stop";

/// How the process of a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The output folder is complete.
    Done,
    /// Stopped on request; a checkpoint is saved if the stage has any.
    Cancelled,
    /// The stage can't continue; a transient reason may pass.
    Failed { message: String, help: Option<String>, transient: bool },
}

/// What running stages are told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    None,
    /// Save a checkpoint and end.
    Stop,
    /// End at once.
    Kill,
}
