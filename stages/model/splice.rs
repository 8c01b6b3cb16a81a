//! The image splice: image tokens are replaced by projected image features. Reference: Imp's
//! `prepare_inputs_labels_for_multimodal`. Sequences are packed one after the other without padding;
//! [`Spliced::padded`] converts to the reference's padded batches.

use crate::{
    imp::Imp,
    layers::Pass,
    tensor::{self, IGNORE, Mat, Segments, Weight},
};

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

impl Imp {
    /// Embeds the tokens of `samples` and replaces each image token by the image's projected features. `features`
    /// `[images * patches, vision hidden]` are projected here, so that gradients reach the projector. Sequences are
    /// truncated to the context length after the splice.
    pub fn splice(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat) -> Spliced {
        const TEXT: usize = 0;
        const IMAGE: usize = 1;
        let patches = self.vision.config.patches();
        let projected = self.projector.forward(pass, features); // [images * patches, hidden]
        let (mut picks, mut labels, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            let start = picks.len();
            let mut images = sample.images.iter();
            for (position, id) in sample.input_ids.iter().enumerate() {
                if *id == IMAGE_TOKEN {
                    if let Some(image) = images.next() {
                        picks.extend((0..patches).map(|patch| (IMAGE, image * patches + patch)));
                        labels.extend(std::iter::repeat_n(IGNORE, patches));
                    }
                } else {
                    picks.push((TEXT, *id as usize));
                    labels.push(sample.labels.get(position).copied().unwrap_or(IGNORE));
                }
            }
            let length = (picks.len() - start).min(self.config.tokenizer_model_max_length);
            picks.truncate(start + length);
            labels.truncate(start + length);
            lengths.push(length);
        }
        let embedded = tensor::gather(&pass.graph, &[self.llm.embedding(), &Weight::Dense(projected)], picks);
        Spliced { embedded, segments: Segments::new(lengths), labels }
    }

    /// Describes what makes `sample` invalid for this model, if anything: token ids outside the vocabulary, or more
    /// image tokens than images. All other functions expect valid samples.
    pub fn fault(&self, sample: &Sample<'_>) -> Option<String> {
        let vocabulary = self.llm.config.vocab_size;
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        let token = sample.input_ids.iter().find(|id| **id != IMAGE_TOKEN && !known(id));
        let label = sample.labels.iter().find(|id| **id != IGNORE && !known(id));
        if let Some(id) = token.or(label) {
            return Some(format!("it has the token id {id}, but the model's vocabulary has {vocabulary} tokens"));
        }
        let (wanted, given) = (sample.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), sample.images.len());
        (wanted > given).then(|| format!("it has {wanted} image tokens, but {given} images"))
    }

    /// Number of labelled positions of `sample` after splice and truncation. The loss of a batch is divided by their
    /// sum.
    pub fn labelled(&self, sample: &Sample<'_>) -> usize {
        let (patches, limit) = (self.vision.config.patches(), self.config.tokenizer_model_max_length);
        let (mut position, mut count) = (0, 0);
        for (id, label) in sample.input_ids.iter().zip(sample.labels) {
            let labelled = *id != IMAGE_TOKEN && *label != IGNORE;
            // Position 0 has no preceding position that could predict it.
            count += usize::from(labelled && position > 0 && position < limit);
            position += if *id == IMAGE_TOKEN { patches } else { 1 };
        }
        count
    }
}
