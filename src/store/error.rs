//! Errors of the store.

use std::path::{Path, PathBuf};

/// To be increased when the layout changes. A cache with a different version is refused.
pub(super) const LAYOUT_VERSION: &str = "1";

/// An error of the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} was created by a different version of imp-flow (layout {found}; this version uses {LAYOUT_VERSION}): choose a different folder with --cache, or delete this one", path.display())]
    Version { path: PathBuf, found: String },
    #[error("{}: {what}", path.display())]
    Refused { path: PathBuf, what: String },
}

impl StoreError {
    /// For `map_err`: an I/O error at `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_path_buf(), source }
    }
}

pub(super) type Result<T> = std::result::Result<T, StoreError>;
