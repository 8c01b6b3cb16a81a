//! The image splice: features in the place of image tokens. Reference: Imp's
//! `prepare_inputs_labels_for_multimodal`. Sequences lie one after the other without padding; [`Spliced::padded`] gives
//! the reference's padded batches.

use crate::{
    imp::Imp,
    layers::Pass,
    tensor::{self, IGNORE, Mat, Segments, Weight},
};

/// The id that stands for an image in a sequence of tokens.
pub const IMAGE_TOKEN: i32 = -200;

/// A sequence of tokens with its images.
#[derive(Clone, Copy, Debug)]
pub struct Sample<'a> {
    /// Token ids; [`IMAGE_TOKEN`] stands for an image.
    pub input_ids: &'a [i32],
    /// The target at each position, or [`IGNORE`]. Empty for inference.
    pub labels: &'a [i32],
    /// Which of the batch's encoded images each [`IMAGE_TOKEN`] stands for, in order.
    pub images: &'a [usize],
}

/// Sequences with their images in place.
pub struct Spliced {
    /// `[rows, hidden]`.
    pub embedded: Mat,
    /// The sequences in its rows.
    pub segments: Segments,
    /// The target at each row, or [`IGNORE`].
    pub labels: Vec<i32>,
}

/// The side of a sequence that is padded: right in training, left in the reference's batched generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Before the sequence.
    Left,
    /// After it.
    Right,
}

/// A batch in the reference's layout, `length` positions a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Padded {
    /// Length of the longest sequence.
    pub length: usize,
    /// `[sequences, length, hidden]`; zeros where there is padding.
    pub embedded: Vec<f32>,
    /// `[sequences, length]`; false where there is padding.
    pub mask: Vec<bool>,
    /// `[sequences, length]`; [`IGNORE`] where there is padding.
    pub labels: Vec<i32>,
    /// `[sequences, length]`; counted within each sequence, 0 where there is padding.
    pub positions: Vec<usize>,
}

impl Spliced {
    /// The same as a padded batch.
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

/// Which image each image token of a batch stands for, as in the reference: in order, and a sample without an image
/// token uses up one (blank) image too.
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
    /// Puts the features of images in the place of their tokens. Features `[images * patches, vision hidden]` are
    /// projected here, so that the projector is trained. Sequences are cut to the context length after the splice.
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

    /// What makes a sample unusable for this model, if anything: ids beyond its vocabulary, or image tokens without
    /// images. Other functions expect samples without such faults.
    pub fn fault(&self, sample: &Sample<'_>) -> Option<String> {
        let vocabulary = self.llm.config.vocab_size;
        let known = |id: &i32| usize::try_from(*id).is_ok_and(|id| id < vocabulary);
        let tokens = sample.input_ids.iter().find(|id| **id != IMAGE_TOKEN && !known(id));
        let labels = sample.labels.iter().find(|id| **id != IGNORE && !known(id));
        if let Some(id) = tokens.or(labels) {
            return Some(format!("it has the token {id}, but the model knows {vocabulary}"));
        }
        let (wanted, given) = (sample.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), sample.images.len());
        (wanted > given).then(|| format!("it has {wanted} image tokens, but {given} images"))
    }

    /// Number of positions of `sample` that are learned, after splice and truncation; their sum divides the loss.
    pub fn labelled(&self, sample: &Sample<'_>) -> usize {
        let (patches, limit) = (self.vision.config.patches(), self.config.tokenizer_model_max_length);
        let (mut position, mut count) = (0, 0);
        for (id, label) in sample.input_ids.iter().zip(sample.labels) {
            let learned = *id != IMAGE_TOKEN && *label != IGNORE;
            // Nothing stands before the first position that could predict it.
            count += usize::from(learned && position > 0 && position < limit);
            position += if *id == IMAGE_TOKEN { patches } else { 1 };
        }
        count
    }
}
