//! The weight of a linear layer or an embedding: a matrix that may train, or values as they lie in a file.

use std::{borrow::Cow, sync::Arc};

use super::{Mat, Stored, host::linear::Values};

/// The weight of a linear layer, `[out, in]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In f32, on the tape if it trains.
    Dense(Mat),
    /// As it lies in the file, widened tile by tile when used. Never trains.
    Stored(Arc<Stored>),
}

impl Weight {
    /// The same values as something that trains, in f32.
    #[must_use]
    pub fn trainable(&self) -> Self {
        let mat = match self {
            Self::Dense(mat) => mat.clone(),
            Self::Stored(stored) => Mat::from_host(stored.rows(), stored.cols(), stored.to_f32()),
        };
        Self::Dense(mat.trainable())
    }

    /// All values in f32, row by row.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Dense(mat) => mat.to_host(),
            Self::Stored(stored) => Cow::Owned(stored.to_f32()),
        }
    }

    /// The matrix, if it trains.
    pub fn trained(&self) -> Option<&Mat> {
        self.dense().filter(|mat| mat.needs_grad)
    }

    /// The matrix, if it is one.
    pub(super) fn dense(&self) -> Option<&Mat> {
        if let Self::Dense(mat) = self { Some(mat) } else { None }
    }

    /// Height: width of the output.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.rows(),
            Self::Stored(stored) => stored.rows(),
        }
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.cols(),
            Self::Stored(stored) => stored.cols(),
        }
    }

    /// The values for the loops of [`super::host`]. Stored f32 is used as it lies in memory.
    pub(super) fn host(&self) -> Values<'_> {
        match self {
            Self::Dense(mat) => Values::Plain(mat.values()),
            Self::Stored(stored) => stored.in_place().map_or(Values::Stored(stored), Values::Plain),
        }
    }
}
