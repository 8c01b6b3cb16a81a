//! The boundaries of packed sequences, and attention masks. Independent of the content of rows.

use std::ops::Range;

/// The rows of each sequence of a batch that is packed into one matrix.
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

    /// Number of rows of all sequences.
    pub fn rows(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there are no sequences.
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

    /// The sequence of each row, and the row's position in it.
    pub fn sequence_positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.iter().enumerate().flat_map(|(sequence, range)| (0..range.len()).map(move |position| (sequence, position)))
    }

    /// The position of each row in its sequence.
    pub fn positions(&self) -> Vec<usize> {
        self.sequence_positions().map(|(_, position)| position).collect()
    }
}

/// Which positions of its sequence a position attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All positions up to and including its own (language models).
    Causal,
    /// Causal, limited to the last N positions including its own (sliding window).
    Window(usize),
    /// All positions (vision encoders).
    Full,
}

impl Mask {
    /// [`Mask::Window`] if there is a window, else [`Mask::Causal`].
    pub fn causal(window: Option<usize>) -> Self {
        window.map_or(Self::Causal, Self::Window)
    }

    /// The positions to which `position` attends in a sequence of `length` positions.
    pub(super) fn visible(self, position: usize, length: usize) -> Range<usize> {
        match self {
            Self::Causal => 0..position + 1,
            Self::Window(width) => (position + 1).saturating_sub(width)..position + 1,
            Self::Full => 0..length,
        }
    }
}
