//! The weight of a linear or embedding layer: a matrix that may train, or a frozen matrix in a file's encoding.

use std::{borrow::Cow, sync::Arc};

use super::{Mat, Stored, host::linear::Values};

/// The weight of a linear layer, `[out, in]`, or of an embedding, `[vocab, hidden]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In f32; may be trainable.
    Dense(Mat),
    /// In the file's encoding, decoded tile by tile when used. Always frozen.
    Stored(Arc<Stored>),
}

impl Weight {
    /// The same values as a trainable f32 matrix.
    #[must_use]
    pub fn trainable(&self) -> Self {
        let mat = match self {
            Self::Dense(mat) => mat.clone(),
            Self::Stored(stored) => Mat::from_host(stored.rows(), stored.cols(), stored.to_f32()),
        };
        Self::Dense(mat.trainable())
    }

    /// All values in f32, row-major.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Dense(mat) => mat.to_host(),
            Self::Stored(stored) => Cow::Owned(stored.to_f32()),
        }
    }

    /// The matrix, if it is trainable.
    pub fn trained(&self) -> Option<&Mat> {
        self.dense().filter(|mat| mat.needs_grad)
    }

    /// The matrix, if it is [`Weight::Dense`].
    pub(super) fn dense(&self) -> Option<&Mat> {
        if let Self::Dense(mat) = self { Some(mat) } else { None }
    }

    /// Width of the output: number of rows.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.rows(),
            Self::Stored(stored) => stored.rows(),
        }
    }

    /// Width of the input: number of columns.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.cols(),
            Self::Stored(stored) => stored.cols(),
        }
    }

    /// The values for the loops of [`super::host`]. Stored f32 is used without a copy.
    pub(super) fn host(&self) -> Values<'_> {
        match self {
            Self::Dense(mat) => Values::Plain(mat.values()),
            Self::Stored(stored) => stored.in_place().map_or(Values::Stored(stored), Values::Plain),
        }
    }
}
