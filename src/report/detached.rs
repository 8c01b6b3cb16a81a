//! The output of `run --detach`.

use std::path::Path;

use serde_json::json;

use super::{
    print::print,
    style::{DIM, GOOD, Style},
};

/// A run that goes on without its terminal.
pub(crate) struct Detached<'a> {
    pub(crate) pipeline: &'a str,
    pub(crate) runner: Runner,
    /// What it says.
    pub(crate) log: &'a Path,
}

/// What runs the stages.
pub(crate) enum Runner {
    /// A process of this machine.
    Process(u32),
    /// A job of the cluster, by its number.
    Job(String),
    /// Nothing any more: there was little or nothing to run.
    Ended,
}

/// Says where the run is, and how to follow and to stop it.
pub(crate) fn detached(run: &Detached<'_>, style: Style) {
    let Detached { pipeline, runner, log } = run;
    if style.json {
        let mut told = json!({"pipeline": pipeline, "log": log});
        match runner {
            Runner::Process(id) => told["process"] = json!(id),
            Runner::Job(job) => told["job"] = json!(job),
            Runner::Ended => told["done"] = json!(true),
        }
        return print(&told.to_string());
    }
    if style.quiet {
        return;
    }
    let (what, stop) = match runner {
        Runner::Process(id) => (
            format!("goes on in the background as process {id}"),
            format!("kill -INT {id}    (its stages save a checkpoint, and the same command resumes them)"),
        ),
        Runner::Job(job) => (
            format!("goes on as {job}, which submits its stages"),
            "the same command without --detach follows the run, and Ctrl-C there stops it; `scancel` ends the runner only".into(),
        ),
        Runner::Ended => return print(&format!("{GOOD}{pipeline}{GOOD:#} is done: {}", log.display())),
    };
    print(&format!("{GOOD}{pipeline}{GOOD:#}: {what}"));
    print(&format!("{DIM}follow:{DIM:#} imp-flow status, imp-flow log -f STAGE, or tail -f {}", log.display()));
    print(&format!("{DIM}stop:{DIM:#}   {stop}"));
}
