//! One verb a file. The only layer that puts pipeline, store, scheduler and report together.

mod cache;
mod fast_path;
mod graph;
mod init;
mod inspect;
mod kinds;
mod plan;
mod record;
mod report;
mod run;
mod runs;
mod session;

use std::{path::PathBuf, process::ExitCode};

pub(crate) use cache::cache;
pub(crate) use graph::graph;
pub(crate) use init::init;
pub(crate) use inspect::{log, show, status, why};
pub(crate) use kinds::kinds;
pub(crate) use plan::plan;
pub(crate) use report::report_eval;
pub(crate) use run::run;
pub(crate) use runs::{compare, runs};

use crate::{
    cli::{SelectArgs, TargetArgs},
    pipeline::{Diagnostics, Sources},
    scheduler::{Names, SchedulerError},
    store::StoreError,
};

/// Why a verb ended early. What a stage did wrong was reported by the run itself.
pub(crate) enum Failure {
    /// The user's files or command line are wrong.
    Usage { problems: Diagnostics, sources: Sources },
    /// The machine's settings are wrong.
    Settings(String),
    /// The store can't be used.
    Store(StoreError),
    /// The run broke off.
    Scheduler(SchedulerError),
    /// The operating system refused.
    Io { what: String, source: std::io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<SchedulerError> for Failure {
    fn from(error: SchedulerError) -> Self {
        match error {
            SchedulerError::Store(error) => Self::Store(error),
            error => Self::Scheduler(error),
        }
    }
}

impl Failure {
    /// 2 where the person has to change something, 1 where the machine has failed.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Settings(_) => ExitCode::from(2),
            Self::Store(_) | Self::Scheduler(_) | Self::Io { .. } => ExitCode::from(1),
        }
    }
}

impl TargetArgs {
    /// With a file that was given without a flag.
    pub(crate) fn or_file(self, file: Option<PathBuf>) -> Self {
        Self { file: self.file.or(file), ..self }
    }
}

impl SelectArgs {
    fn names(&self) -> Names<'_> {
        Names { only: &self.only, until: &self.until, from: &self.from, force: &self.force }
    }
}
