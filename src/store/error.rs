//! What can go wrong in the store.

use std::path::{Path, PathBuf};

/// Raised when the layout changes. A cache with another version is refused.
pub(super) const LAYOUT_VERSION: &str = "1";

/// What can go wrong in the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} was made by another version of imp-flow (layout {found}; this version uses {LAYOUT_VERSION}): use another --cache, or delete it", path.display())]
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
