//! The weight of a linear or embedding layer: a matrix that may train, or a frozen matrix in a file's encoding.

use std::{borrow::Cow, ops::Range, sync::Arc};

use super::{
    Mat, Place, Stored,
    device::ops::{Operand, Source},
    host::linear::Values,
};

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
            Self::Stored(stored) => Mat::from_host(stored.rows(), stored.cols(), stored.to_f32()).to(stored.place()),
        };
        Self::Dense(mat.trainable())
    }

    /// Where the weight lies.
    pub fn place(&self) -> Place {
        match self {
            Self::Dense(mat) => mat.place(),
            Self::Stored(stored) => stored.place().clone(),
        }
    }

    /// The same weight at `place`. A stored one keeps its file's values for [`Weight::to_host`].
    #[must_use]
    pub fn to(&self, place: &Place) -> Self {
        match self {
            Self::Dense(mat) => Self::Dense(mat.to(place)),
            Self::Stored(stored) if stored.place() == place => self.clone(),
            Self::Stored(stored) => Self::Stored(Arc::new(stored.to(place))),
        }
    }

    /// All values in f32, row-major.
    pub fn to_host(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Dense(mat) => mat.to_host(),
            Self::Stored(stored) => Cow::Owned(stored.to_f32()),
        }
    }

    /// Some rows in f32, for who needs them once.
    pub fn read_once(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let values = rows.start * self.inputs()..rows.end * self.inputs();
        match self {
            Self::Dense(mat) => match mat.to_host() {
                Cow::Borrowed(all) => Cow::Borrowed(&all[values]),
                Cow::Owned(all) => Cow::Owned(all[values].to_vec()),
            },
            Self::Stored(stored) => Cow::Owned(stored.read_once(rows)),
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

    /// The weight as an operand of products on a device, if it lies on one.
    pub(super) fn operand(&self) -> Option<Operand> {
        match self {
            Self::Dense(mat) => mat.device_mat().cloned().map(Operand::Mat),
            Self::Stored(stored) => stored.on_device().cloned().map(Operand::Frozen),
        }
    }

    /// The weight as a source of rows on a device. Of 4-bit weights the rows that `picks` takes from it are decoded.
    pub(super) fn source(&self, index: usize, picks: &[(usize, usize)]) -> Source {
        match self {
            Self::Dense(mat) => Source::Mat(mat.clone()),
            Self::Stored(stored) => {
                if let Some(weight) = stored.on_device().filter(|weight| weight.plain().is_some()) {
                    return Source::Frozen(weight.clone());
                }
                let own: Vec<usize> =
                    picks.iter().filter(|(source, _)| *source == index).map(|(_, row)| *row).collect();
                let mut rows = vec![0.0; own.len() * stored.cols()];
                for (row, to) in own.iter().zip(rows.chunks_mut(stored.cols().max(1))) {
                    stored.widen(*row, to);
                }
                Source::Rows(rows)
            }
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
