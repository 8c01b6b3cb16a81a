//! Errors of the store.

use std::{
    io,
    path::{Path, PathBuf},
};

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
    /// Something is wrong with the user's own files.
    #[error("{}: {what}", path.display())]
    Source { path: PathBuf, what: String, help: &'static str },
}

impl StoreError {
    /// Whether the reason is that this process may not write there.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_read_only(source))
    }

    /// For `map_err`: an I/O error at `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_path_buf(), source }
    }
}

pub(super) type Result<T> = std::result::Result<T, StoreError>;

/// Whether this process may not write there.
pub(super) fn is_read_only(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem)
}
