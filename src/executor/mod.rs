//! Where the process of a stage runs. Unaware of the graph and of keys: it gets a job file and hands back
//! events and an outcome.

mod child;
mod local;

pub(crate) use child::{STARTED, run_job};
pub(crate) use local::run;

/// How the process of a stage ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The output folder is complete.
    Done,
    /// Stopped on request; a checkpoint is saved if the stage makes any.
    Cancelled,
    /// The stage said why it can't go on, and whether that may be over in a while.
    Failed { message: String, help: Option<String>, transient: bool },
}

/// What the runner wants of a running stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopSignal {
    None,
    /// Save a checkpoint and end.
    Stop,
    /// End at once.
    Kill,
}
