//! The sequences of a batch: which rows belong together. Independent of what the rows hold.

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

    /// Rows in all.
    pub fn rows(&self) -> usize {
        self.0[self.0.len() - 1]
    }

    /// How many sequences.
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows of each sequence.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = std::ops::Range<usize>> + '_ {
        self.0.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The rows of sequence `index`.
    pub fn range(&self, index: usize) -> std::ops::Range<usize> {
        self.0[index]..self.0[index + 1]
    }

    /// For every row its sequence and its position there.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.iter().enumerate().flat_map(|(sequence, range)| (0..range.len()).map(move |position| (sequence, position)))
    }

    /// The position of every row in its sequence.
    pub fn positions(&self) -> Vec<usize> {
        self.places().map(|(_, position)| position).collect()
    }
}
