//! Why a stage ended without its output.

use std::path::{Path, PathBuf};

/// What to do about a full disk.
pub const DISK_FULL: &str = "make room on the disk, then run the same command again: nothing is lost";

/// Why a stage ended without its output.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The run is being stopped. What was done so far lies in the checkpoint folder.
    #[error("stopped")]
    Cancelled,
    /// A file that the stage was given can't be used.
    #[error("{}{}: {message}", file.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
    Input {
        /// The file; [`crate::Job::named`] turns a path in an input folder into the user's own.
        file: PathBuf,
        /// Line in the file, from 1.
        line: Option<usize>,
        /// What is wrong with it.
        message: String,
        /// What the person can do.
        help: String,
    },
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Its words.
        source: std::io::Error,
    },
    /// Something that may be over in a while, as a network's trouble: the runner tries again.
    #[error("{message}")]
    Transient {
        /// What happened.
        message: String,
        /// What the person can do if it is not over.
        help: String,
    },
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// What happened.
        message: String,
        /// What the person can do.
        help: String,
    },
}

impl StageError {
    /// A file that can't be used.
    pub fn input(file: impl Into<PathBuf>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Input { file: file.into(), line: None, message: message.into(), help: help.into() }
    }

    /// The same, with a line.
    #[must_use]
    pub fn at_line(mut self, number: usize) -> Self {
        if let Self::Input { line, .. } = &mut self {
            *line = Some(number);
        }
        self
    }

    /// A failure that no single file is to blame for.
    pub fn failed(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), help: help.into() }
    }

    /// A failure that may be over in a while.
    pub fn transient(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), help: help.into() }
    }

    /// For `map_err`: an I/O error at `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// What the person can do, if anything is known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Input { help, .. } | Self::Transient { help, .. } | Self::Failed { help, .. } => {
                Some(help).filter(|h| !h.is_empty()).map(String::as_str)
            }
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Some(DISK_FULL),
            Self::Io { .. } | Self::Cancelled => None,
        }
    }
}
