//! Which rows of a matrix are a sequence, and what each of them may look at. Independent of what the rows hold.

use std::ops::Range;

/// Where each sequence of a batch begins in the rows of a matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segments(Vec<usize>);

impl Segments {
    /// Sequences of these lengths, one after the other.
    pub fn new(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut starts = vec![0];
        let mut end = 0;
        for length in lengths {
            end += length;
            starts.push(end);
        }
        Self(starts)
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of each sequence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.0.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The rows of sequence `index`.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.0[index]..self.0[index + 1]
    }

    /// For each row its sequence and its position in that sequence.
    pub fn sequence_positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.iter().enumerate().flat_map(|(sequence, range)| (0..range.len()).map(move |position| (sequence, position)))
    }

    /// The position of each row in its sequence.
    pub fn positions(&self) -> Vec<usize> {
        self.sequence_positions().map(|(_, position)| position).collect()
    }
}

/// What a position may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Itself and what comes before (language models).
    Causal,
    /// The same, but no more than this many positions, itself included (sliding window).
    Window(usize),
    /// Its whole sequence (vision encoders).
    Full,
}

impl Mask {
    /// Causal, with a window if there is one.
    pub fn causal(window: Option<usize>) -> Self {
        window.map_or(Self::Causal, Self::Window)
    }

    /// The positions that `row` may look at, of a sequence of `length`.
    pub(super) fn seen(self, row: usize, length: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..row + 1,
            Self::Window(width) => (row + 1).saturating_sub(width)..row + 1,
            Self::Full => 0..length,
        }
    }
}
