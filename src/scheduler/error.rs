//! Errors that end a run, or fail a stage from outside. A stage's own failure is an outcome, not an error.

use std::io;

use tokio::task::JoinError;

use crate::store::StoreError;

/// What can go wrong in the scheduler.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SchedulerError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't listen for signals: {0}")]
    Signals(#[source] io::Error),
    /// A stage's process could not be started or followed.
    #[error("can't run the stage's process: {0}")]
    Process(#[source] io::Error),
    #[error("an internal task of the scheduler ended unexpectedly: {0}")]
    Lost(#[from] JoinError),
}

impl SchedulerError {
    /// What the user can do about it.
    pub(super) fn remedy(&self) -> Option<&'static str> {
        let (Self::Store(StoreError::Io { source, .. }) | Self::Process(source)) = self else { return None };
        match source.kind() {
            io::ErrorKind::PermissionDenied => {
                Some("make the cache folder writable, or choose a different one with --cache")
            }
            _ => imp_stages::contract::error::remedy(source),
        }
    }
}
