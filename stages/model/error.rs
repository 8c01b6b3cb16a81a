//! Why a model can't be read or written, with the file, and the tensor where there is one.

use std::path::{Path, PathBuf};

/// The result of reading or writing a model.
pub type Result<T> = std::result::Result<T, ModelError>;

/// Why a model can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Its error.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {message}", file.display())]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A tensor that the configuration requires is missing.
    #[error("{}: the tensor `{tensor}` is missing", file.display())]
    Missing {
        /// The file or folder.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor has a different shape than the configuration says.
    #[error("{}: the tensor `{tensor}` has the shape {found:?}, but config.json says {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
        /// By the configuration.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A tensor that no layer of the model reads.
    #[error("{}: the tensor `{tensor}` belongs to no layer that config.json describes", file.display())]
    Extra {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
    /// A tensor with a NaN or an infinity in it.
    #[error("{}: the tensor `{tensor}` holds values that are not finite", file.display())]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// Its name.
        tensor: String,
    },
}

impl ModelError {
    /// For `map_err`: an I/O error at `file`.
    pub fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { file: file.to_path_buf(), source }
    }

    /// A file that is not what it should be.
    pub fn file(file: &Path, message: impl Into<String>) -> Self {
        Self::File { file: file.to_path_buf(), message: message.into() }
    }

    /// The file or folder at fault.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { file, .. }
            | Self::File { file, .. }
            | Self::Missing { file, .. }
            | Self::Shape { file, .. }
            | Self::Extra { file, .. }
            | Self::NotFinite { file, .. } => file,
        }
    }

    /// The message without the path.
    pub fn message(&self) -> String {
        let text = self.to_string();
        let prefix = format!("{}: ", self.path().display());
        text.strip_prefix(&prefix).map_or(text.clone(), ToString::to_string)
    }
}
