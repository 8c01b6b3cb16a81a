//! The context of a forward pass: the tape that records it, the seed of its dropout, and gradient checkpointing.

use std::sync::Arc;

use super::importance::Observer;
use crate::tensor::Graph;

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
        Self { graph: Graph::inference(), dropout: None, gradient_checkpointing: false, observer: None }
    }

    /// For training. `seed` is the step's dropout seed, `first_sample` the index in the step's batch of this pass's
    /// first sample, so that dropout does not depend on how a batch is split into micro-batches.
    pub fn training(seed: u64, first_sample: usize) -> Self {
        let dropout = Dropout { seed, first_sample, rows: Arc::default() };
        Self { graph: Graph::recording(), dropout: Some(dropout), gradient_checkpointing: false, observer: None }
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
        let dropout = self.dropout.as_ref().map(|Dropout { seed, first_sample, .. }| {
            let ids =
                rows.into_iter().map(|(sample, position)| ((first_sample + sample) as u64) << 32 | position as u64);
            Dropout { seed: *seed, first_sample: *first_sample, rows: ids.collect() }
        });
        Self { dropout, ..self.clone() }
    }

    /// The dropout settings; `None` at inference.
    pub(super) fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }
}
