//! The whole model: images are encoded, projected and spliced into the token embeddings, and the language model
//! reads the result (arXiv 2405.12107, figure 2).

use crate::{
    config::ImpConfig,
    language::Decoder,
    layers::Pass,
    memory::loss_chunk_rows,
    projector::Projector,
    sample::Sample,
    tensor::{self, IGNORE, Mat, Place, Segments},
    vision::VisionTower,
};

/// An Imp: vision encoder, projector and language model. Clones share memory until a weight is modified.
#[derive(Clone)]
pub struct Imp {
    /// How vision encoder and language model are joined.
    pub config: ImpConfig,
    /// The language model.
    pub llm: Decoder,
    /// The vision encoder.
    pub vision: VisionTower,
    /// Maps image features to embeddings of the language model.
    pub projector: Projector,
}

impl Imp {
    /// Moves all weights to `place`, where from then on everything is computed. Call it after weights were made trainable:
    /// trainable ones are kept in f32.
    pub fn move_to(&mut self, place: &Place) {
        self.llm.move_to(place);
        self.vision.move_to(place);
        self.projector.move_to(place);
    }

    /// Encodes images `[3, size, size]` with values in [-1, 1]. Returns features `[images * patches, vision hidden]`, or what the
    /// encoder's blocks that train take: see [`VisionTower::encode`].
    pub fn encode_images(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        self.vision.encode(images)
    }

    /// Returns logits `[rows, vocab]` at all positions of the spliced sequences, and the rows of each sequence.
    pub fn forward(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat) -> (Mat, Segments) {
        let spliced = self.splice(pass, samples, features);
        let pass = pass.on_rows(spliced.segments.sequence_positions());
        let hidden = self.llm.forward(&pass, &spliced.embedded, &spliced.segments);
        (self.llm.logits(&pass, &hidden), spliced.segments)
    }

    /// Returns the loss of `samples` (see [`Imp::loss`]) and the gradients of all trainable matrices in the order of
    /// [`Imp::trainable`], as [`crate::optim::Optimizer::update`] takes them.
    pub fn loss_and_gradients(
        &mut self,
        pass: &Pass,
        samples: &[Sample<'_>],
        features: &Mat,
        count: usize,
    ) -> (f32, Vec<Mat>) {
        let loss = self.loss(pass, samples, features, count);
        let gradients = self.gradients(&mut pass.graph.backward(&loss));
        (loss.item(), gradients)
    }

    /// Returns the next-token cross-entropy summed over all labelled positions and divided by `count`, `[1, 1]`.
    /// `count` is the sum of [`Imp::labelled`] over the whole batch, even if `samples` is only one micro-batch: losses
    /// and gradients of the micro-batches then add up to those of the batch.
    pub fn loss(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat, count: usize) -> Mat {
        let spliced = self.splice(pass, samples, features);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for range in spliced.segments.iter() {
            for row in range.start + 1..range.end {
                if spliced.labels[row] != IGNORE {
                    rows.push(row - 1);
                    targets.push(spliced.labels[row] as u32);
                }
            }
        }
        let pass = pass.on_rows(spliced.segments.sequence_positions());
        // Only labelled positions, which are a small part of a long conversation.
        let labelled = self.llm.forward_at(&pass, &spliced.embedded, &spliced.segments, &rows.clone().into());
        let chunk_rows = loss_chunk_rows(self.llm.config.vocab_size);
        let parameters = self.llm.head_parameters();
        tensor::sum_over_chunks(&pass.graph, &labelled, chunk_rows, &parameters, |graph, chunk, hidden| {
            let pass = pass.recorded_by(graph).on_some(&rows[chunk.clone()]);
            let logits = self.llm.logits(&pass, hidden); // [chunk, vocab]
            tensor::cross_entropy(graph, &logits, targets[chunk].to_vec(), count)
        })
    }
}
