//! The whole model: images are encoded, projected and spliced into the token embeddings, and the language model
//! reads the result (arXiv 2405.12107, figure 2).

use crate::{
    config::ImpConfig,
    language::Decoder,
    layers::Pass,
    memory::logits_at_once,
    projector::Projector,
    splice::Sample,
    tensor::{self, IGNORE, Mat, Segments},
    vision::Siglip,
};

/// An Imp: vision encoder, projector and language model.
pub struct Imp {
    /// How the parts are joined.
    pub config: ImpConfig,
    /// The language model.
    pub llm: Decoder,
    /// The vision encoder.
    pub vision: Siglip,
    /// From one to the other.
    pub projector: Projector,
}

impl Imp {
    /// Features `[images * patches, vision hidden]` of images `[3, size, size]` with values in -1..1.
    pub fn encode_images(&self, images: &[impl AsRef<[f32]>]) -> Mat {
        self.vision.encode(images)
    }

    /// Logits `[rows, vocab]` of all positions of the spliced sequences, and which rows belong to which sequence.
    pub fn forward(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat) -> (Mat, Segments) {
        let spliced = self.splice(pass, samples, features);
        let pass = pass.on_rows(spliced.segments.sequence_positions());
        let hidden = self.llm.forward(&pass, &spliced.embedded, &spliced.segments);
        (self.llm.logits(&pass, &hidden), spliced.segments)
    }

    /// The loss of `samples` as [`Imp::loss`] gives it, and the gradients of everything that trains, in the order of
    /// [`Imp::trainable`]: what [`crate::optim::Optimizer::update`] takes.
    pub fn loss_and_gradients(
        &mut self,
        pass: &Pass,
        samples: &[Sample<'_>],
        features: &Mat,
        count: usize,
    ) -> (f32, Vec<Mat>) {
        let loss = self.loss(pass, samples, features, count);
        (loss.item(), self.gradients(&mut pass.graph.backward(&loss)))
    }

    /// The sum of the cross-entropies of all labelled positions, each predicted from the one before it, divided
    /// by `count`: `[1, 1]`. `count` is the sum of [`Imp::labelled`] over the whole batch, also when `samples` are a part
    /// of it: then the losses and gradients of the parts add up to the batch's.
    pub fn loss(&self, pass: &Pass, samples: &[Sample<'_>], features: &Mat, count: usize) -> Mat {
        let spliced = self.splice(pass, samples, features);
        let positions: Vec<(usize, usize)> = spliced.segments.sequence_positions().collect();
        let hidden = self.llm.forward(&pass.on_rows(positions.iter().copied()), &spliced.embedded, &spliced.segments);
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for range in spliced.segments.iter() {
            for row in range.start + 1..range.end {
                if spliced.labels[row] != IGNORE {
                    rows.push(row - 1);
                    targets.push(spliced.labels[row] as u32);
                }
            }
        }
        let positions: Vec<(usize, usize)> = rows.iter().map(|row| positions[*row]).collect();
        // Logits only where something is learned: a small part of a long conversation.
        let learned = tensor::pick_rows(&pass.graph, &hidden, rows);
        let at_once = logits_at_once(self.llm.config.vocab_size);
        tensor::sum_over_chunks(&pass.graph, &learned, at_once, &self.llm.head_parameters(), |graph, chunk, hidden| {
            let pass = pass.recorded_by(graph).on_rows(positions[chunk.clone()].iter().copied());
            let logits = self.llm.logits(&pass, hidden); // [chunk, vocab]
            tensor::cross_entropy(graph, &logits, targets[chunk].to_vec(), count)
        })
    }
}
