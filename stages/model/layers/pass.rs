//! The context of a forward pass: the tape that records it, the seed of its dropout, and gradient checkpointing.

use std::sync::Arc;

use super::{importance::Observer, random::fnv1a};
use crate::tensor::{self, Graph, Mat, Segments};

/// The context of a forward pass.
#[derive(Clone)]
pub struct Pass {
    /// The graph that records the operations, or does not.
    pub graph: Graph,
    /// None at inference.
    dropout: Option<Dropout>,
    gradient_checkpointing: bool,
    /// Sees the inputs of linear layers.
    observer: Option<Arc<Observer>>,
    /// Alpha of NEFTune; 0 for no noise.
    noise: f64,
}

#[derive(Clone)]
pub(super) struct Dropout {
    pub(super) seed: u64,
    first_sample: usize,
    /// An id for each row of the layers' inputs: sample in the high, position in the low 32 bits.
    pub(super) rows: Arc<[u64]>,
}

impl Pass {
    /// For inference: without tape and dropout.
    pub fn inference() -> Self {
        Self { graph: Graph::inference(), dropout: None, gradient_checkpointing: false, observer: None, noise: 0.0 }
    }

    /// For training. `seed` is the step's dropout seed, `first_sample` the index in the step's batch of this pass's
    /// first sample, so that dropout does not depend on how a batch is split into micro-batches.
    pub fn training(seed: u64, first_sample: usize) -> Self {
        let dropout = Dropout { seed, first_sample, rows: Arc::default() };
        let (graph, dropout) = (Graph::recording(), Some(dropout));
        Self { graph, dropout, gradient_checkpointing: false, observer: None, noise: 0.0 }
    }

    /// For inference, while `observer` sees the inputs of linear layers.
    pub fn observed(observer: Arc<Observer>) -> Self {
        Self { observer: Some(observer), ..Self::inference() }
    }

    /// Who sees the inputs of linear layers.
    pub(super) fn observer(&self) -> Option<&Observer> {
        self.observer.as_deref()
    }

    /// The same pass with gradient checkpointing: saves only the inputs of the language model's blocks, and recomputes
    /// the rest in the backward pass.
    #[must_use]
    pub fn with_gradient_checkpointing(self) -> Self {
        Self { gradient_checkpointing: true, ..self }
    }

    /// The same pass with the noise of NEFTune on embedded tokens, if it is one for training.
    #[must_use]
    pub fn with_noise(self, alpha: f64) -> Self {
        Self { noise: alpha, ..self }
    }

    /// Adds the noise of NEFTune (Jain et al. 2023, arXiv 2310.05914), if the pass has it, to the rows of embedded sequences `[rows, width]`
    /// that are tokens: uniform within `alpha / sqrt(length * width)`, where `length` is that of the row's sequence. In
    /// transformers, where it is that of the padded batch, features of images replace what was embedded in their place, noise included.
    pub(crate) fn noisy(&self, embedded: Mat, segments: &Segments, is_token: &[bool]) -> Mat {
        let Some(dropout) = self.dropout.as_ref().filter(|_| self.noise > 0.0) else { return embedded };
        let width = embedded.cols();
        let of_sequence = |rows: std::ops::Range<usize>| {
            let bound = self.noise / ((rows.len() * width) as f64).sqrt();
            rows.map(move |row| if is_token[row] { bound as f32 } else { 0.0 })
        };
        let bounds: Vec<f32> = segments.iter().flat_map(of_sequence).collect();
        let ids = dropout.ids(segments.sequence_positions());
        tensor::add_noise(&self.graph, embedded, &bounds, dropout.seed ^ fnv1a("neftune"), &ids)
    }

    /// Whether the backward pass recomputes the blocks.
    pub fn gradient_checkpointing(&self) -> bool {
        self.gradient_checkpointing
    }

    /// The same pass, recorded by `graph`.
    #[must_use]
    pub fn recorded_by(&self, graph: &Graph) -> Self {
        Self { graph: graph.clone(), ..self.clone() }
    }

    /// The same pass for inputs with these rows, each given as (sample, position).
    #[must_use]
    pub fn on_rows(&self, rows: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let dropout = self.dropout.as_ref().map(|dropout| Dropout {
            seed: dropout.seed,
            first_sample: dropout.first_sample,
            rows: dropout.ids(rows),
        });
        Self { dropout, ..self.clone() }
    }

    /// The same pass for some of the inputs' rows.
    #[must_use]
    pub fn on_some(&self, rows: &[usize]) -> Self {
        let pick = |dropout: &Dropout| rows.iter().map(|row| dropout.rows[*row]).collect();
        let dropout = self.dropout.as_ref().map(|dropout| Dropout { rows: pick(dropout), ..dropout.clone() });
        Self { dropout, ..self.clone() }
    }

    /// The dropout settings; `None` at inference.
    pub(super) fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }
}

impl Dropout {
    /// The ids of rows, each given as (sample, position).
    fn ids(&self, rows: impl IntoIterator<Item = (usize, usize)>) -> Arc<[u64]> {
        let id = |(sample, position)| ((self.first_sample + sample) as u64) << 32 | position as u64;
        rows.into_iter().map(id).collect()
    }
}
