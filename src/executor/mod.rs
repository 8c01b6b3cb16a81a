//! Runs the process of a stage: takes a job file, returns events and an outcome. Independent of the graph and of keys.

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
    /// Stopped on request, after saving a checkpoint if the stage supports it.
    Cancelled,
    /// The stage failed. If the failure is transient, another attempt may succeed.
    Failed { message: String, help: Option<String>, transient: bool },
}

/// What running stages should do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    None,
    /// Save a checkpoint and end.
    Stop,
    /// End at once.
    Kill,
}
