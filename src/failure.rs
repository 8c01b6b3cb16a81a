//! Why a verb ended early, and the exit code. Independent of how it is shown.

use std::process::ExitCode;

use imp_stages::StageError;

use crate::{
    pipeline::{Diagnostic, Diagnostics, Sources},
    scheduler::SchedulerError,
    store::StoreError,
};

/// Why a verb ended early. Failures of stages are not included, since the run reports them.
pub(crate) enum Failure {
    /// Errors in the user's files or on the command line.
    Usage { problems: Diagnostics, sources: Sources },
    /// An error in the machine's settings.
    Settings(String),
    /// The store can't be used.
    Store(StoreError),
    /// The scheduler could not continue the run.
    Scheduler(SchedulerError),
    /// A question to a model that has no answer.
    Stage(StageError),
    /// A remote cache can't be used.
    Remote { address: String, what: String },
    /// An error of the operating system.
    Io { what: String, source: std::io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Source { help, .. } => {
                let problem = Diagnostic::new(format!("can't read a source: {error}"), None).help(help);
                Self::Usage { problems: vec![problem], sources: Sources::default() }
            }
            error => Self::Store(error),
        }
    }
}

impl From<SchedulerError> for Failure {
    fn from(error: SchedulerError) -> Self {
        match error {
            SchedulerError::Store(error) => error.into(),
            error => Self::Scheduler(error),
        }
    }
}

impl Failure {
    /// 2 if the user has to change something, 1 if the system failed.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Settings(_) | Self::Stage(StageError::Input { .. }) => ExitCode::from(2),
            Self::Store(_) | Self::Scheduler(_) | Self::Stage(_) | Self::Remote { .. } | Self::Io { .. } => {
                ExitCode::from(1)
            }
        }
    }
}
