//! What goes into a model, token sequences with images, and the same spliced together: packed one after the other, or padded
//! as in the reference. Independent of the model.

use crate::tensor::{IGNORE, Mat, Segments};

/// The token id that stands for an image (LLaVA's `IMAGE_TOKEN_INDEX`).
pub const IMAGE_TOKEN: i32 = -200;

/// A token sequence with its images.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Token ids; [`IMAGE_TOKEN`] stands for an image.
    pub input_ids: &'a [i32],
    /// The label of each token, or [`IGNORE`]; empty at inference.
    pub labels: &'a [i32],
    /// The index in the batch's features of the image that each [`IMAGE_TOKEN`] stands for, in order.
    pub images: &'a [usize],
}

/// Embedded sequences with their images spliced in.
pub struct Spliced {
    /// Embeddings, `[rows, hidden]`.
    pub embedded: Mat,
    /// The rows of each sequence.
    pub segments: Segments,
    /// The label of each row, or [`IGNORE`].
    pub labels: Vec<i32>,
}

/// The side on which sequences are padded: right in training, left in the reference's batched generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Padding before the sequence.
    Left,
    /// Padding after the sequence.
    Right,
}

/// A padded batch in the reference's layout, with `length` positions per sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Padded {
    /// Length of the longest sequence.
    pub length: usize,
    /// Embeddings, `[sequences, length, hidden]`; zeros in the padding.
    pub embedded: Vec<f32>,
    /// Attention mask, `[sequences, length]`; false in the padding.
    pub mask: Vec<bool>,
    /// Labels, `[sequences, length]`; [`IGNORE`] in the padding.
    pub labels: Vec<i32>,
    /// Position ids, `[sequences, length]`: from 0 in each sequence; 0 in the padding.
    pub positions: Vec<usize>,
}

impl Spliced {
    /// Converts to a padded batch.
    pub fn padded(&self, side: Side) -> Padded {
        let length = self.segments.iter().map(|range| range.len()).max().unwrap_or(0);
        let (width, positions) = (self.embedded.cols(), self.segments.len() * length);
        let mut padded = Padded {
            length,
            embedded: vec![0.0; positions * width],
            mask: vec![false; positions],
            labels: vec![IGNORE; positions],
            positions: vec![0; positions],
        };
        let embedded = self.embedded.to_host();
        for (sequence, range) in self.segments.iter().enumerate() {
            let start = sequence * length + if side == Side::Left { length - range.len() } else { 0 };
            for (position, row) in range.enumerate() {
                let to = start + position;
                let values = &embedded[row * width..(row + 1) * width];
                padded.embedded[to * width..(to + 1) * width].copy_from_slice(values);
                padded.mask[to] = true;
                padded.labels[to] = self.labels[row];
                padded.positions[to] = position;
            }
        }
        padded
    }
}

/// The image index of each image token of a batch, as in the reference: in order, where a sample without an image token
/// also consumes one (blank) image.
pub fn images_in_order<'a>(batch: impl IntoIterator<Item = &'a [i32]>) -> Vec<Vec<usize>> {
    let mut next = 0;
    let mut of = |ids: &[i32]| {
        let count = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        let images = (next..next + count).collect();
        next += count.max(1);
        images
    };
    batch.into_iter().map(&mut of).collect()
}
