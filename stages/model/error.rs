//! Errors of reading and writing models, with the file and, if there is one, the tensor.

use std::path::{Path, PathBuf};

/// The result of reading or writing a model.
pub type Result<T> = std::result::Result<T, ModelError>;

/// Why a model can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// An error of the operating system.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The error.
        source: std::io::Error,
    },
    /// The file's content is invalid or not supported.
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
        /// The tensor's name.
        tensor: String,
    },
    /// A tensor's shape differs from that in the configuration.
    #[error("{}: the tensor `{tensor}` has the shape {found:?}, but config.json says {expected:?}", file.display())]
    Shape {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The shape in the configuration.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor that no layer of the model reads.
    #[error("{}: the tensor `{tensor}` does not belong to any layer that config.json describes", file.display())]
    Extra {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
    /// A value of a tensor is too large for the type that it is to be written in.
    #[error("{}: the tensor `{tensor}` has the value {value:e}, which {kind} can't hold (its largest is {largest:e})", file.display())]
    Overflow {
        /// The file that was to be written.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
        /// The value of the largest magnitude, or one that is not a number.
        value: f32,
        /// The type, as in `f16`.
        kind: &'static str,
        /// The largest value of that type.
        largest: f32,
    },
    /// A tensor contains a NaN or an infinity.
    #[error("{}: the tensor `{tensor}` contains non-finite values", file.display())]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        tensor: String,
    },
}

impl ModelError {
    /// For `map_err`: wraps an I/O error of `file`.
    pub fn io(file: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        |source| Self::Io { file: file.to_path_buf(), source }
    }

    /// An error in the content of `file`.
    pub fn file(file: &Path, message: impl Into<String>) -> Self {
        Self::File { file: file.to_path_buf(), message: message.into() }
    }

    /// The path of the invalid file or folder.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { file, .. }
            | Self::File { file, .. }
            | Self::Missing { file, .. }
            | Self::Shape { file, .. }
            | Self::Extra { file, .. }
            | Self::Overflow { file, .. }
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
