//! Why a verb ended early, and its exit code. Independent of how that is shown.

use std::process::ExitCode;

use crate::{
    pipeline::{Diagnostics, Sources},
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
    /// The operating system refused.
    Io { what: String, source: std::io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// 2 where the person has to change something, 1 where the machine has failed.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Settings(_) => ExitCode::from(2),
            Self::Store(_) | Self::Io { .. } => ExitCode::from(1),
        }
    }
}
