//! Why a stage ended without its output. Independent of how errors are shown.

use std::path::{Path, PathBuf};

/// What to do about a full disk.
pub const DISK_FULL: &str = "make room on the disk, then run the same command again: nothing is lost";
/// What to do about a limit on the size of files.
pub const FILE_TOO_LARGE: &str =
    "raise the limit on the size of files (`ulimit -f`), then run the same command again: nothing is lost";

/// What the user can do about an error of the operating system, if known.
pub fn remedy(error: &std::io::Error) -> Option<&'static str> {
    match error.kind() {
        std::io::ErrorKind::StorageFull => Some(DISK_FULL),
        std::io::ErrorKind::FileTooLarge => Some(FILE_TOO_LARGE),
        _ => None,
    }
}

/// Why a stage ended without its output.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The run is being stopped. The work so far is in the checkpoint folder.
    #[error("stopped")]
    Cancelled,
    /// An input file can't be used.
    #[error("{}{}: {message}", file.display(), line.map(|n| format!(":{n}")).unwrap_or_default())]
    Input {
        /// The file; [`crate::Job::named`] turns a path in an input folder into the user's own.
        file: PathBuf,
        /// Line in the file, from 1.
        line: Option<usize>,
        /// What is wrong with the file.
        message: String,
        /// What the user can do.
        help: String,
    },
    /// An error of the operating system.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A failure that may be temporary, such as a network error: the runner tries again.
    #[error("{message}")]
    Transient {
        /// What happened.
        message: String,
        /// What the user can do if it persists.
        help: String,
    },
    /// Anything else.
    #[error("{message}")]
    Failed {
        /// What happened.
        message: String,
        /// What the user can do.
        help: String,
    },
}

impl StageError {
    /// A file that can't be used.
    pub fn input(file: impl Into<PathBuf>, message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Input { file: file.into(), line: None, message: message.into(), help: help.into() }
    }

    /// The same error with a line number.
    #[must_use]
    pub fn at_line(mut self, number: usize) -> Self {
        if let Self::Input { line, .. } = &mut self {
            *line = Some(number);
        }
        self
    }

    /// A failure that is not the fault of a single file.
    pub fn failed(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Failed { message: message.into(), help: help.into() }
    }

    /// A failure that may be temporary.
    pub fn transient(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::Transient { message: message.into(), help: help.into() }
    }

    /// For `map_err`: an I/O error at `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { path: path.to_path_buf(), source }
    }

    /// What the user can do, if known.
    pub fn help(&self) -> Option<&str> {
        match self {
            Self::Input { help, .. } | Self::Transient { help, .. } | Self::Failed { help, .. } => {
                Some(help).filter(|h| !h.is_empty()).map(String::as_str)
            }
            Self::Io { source, .. } => remedy(source),
            Self::Cancelled => None,
        }
    }
}
