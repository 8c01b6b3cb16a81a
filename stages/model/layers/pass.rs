//! One forward pass: what records it, what its dropout drops, and whether the backward pass recomputes activations.

use std::sync::Arc;

use crate::tensor::Graph;

/// One forward pass.
#[derive(Clone)]
pub struct Pass {
    /// Records or not.
    pub graph: Graph,
    /// None at inference.
    dropout: Option<Dropout>,
    gradient_checkpointing: bool,
}

#[derive(Clone)]
pub(super) struct Dropout {
    pub(super) seed: u64,
    first_sample: usize,
    /// A name for each row that layers are given.
    pub(super) rows: Arc<[u64]>,
}

impl Pass {
    /// Records nothing, drops nothing.
    pub fn inference() -> Self {
        Self { graph: Graph::inference(), dropout: None, gradient_checkpointing: false }
    }

    /// For training, with the seed of the step's dropout and the index in the step's batch of this pass's first sample:
    /// so a batch drops the same values however it is cut into parts.
    pub fn training(seed: u64, first_sample: usize) -> Self {
        let dropout = Dropout { seed, first_sample, rows: Arc::default() };
        Self { graph: Graph::recording(), dropout: Some(dropout), gradient_checkpointing: false }
    }

    /// The same pass, keeping only the inputs of the language model's blocks: the backward pass recomputes the rest.
    #[must_use]
    pub fn with_gradient_checkpointing(self) -> Self {
        Self { gradient_checkpointing: true, ..self }
    }

    /// Whether the backward pass recomputes blocks.
    pub fn gradient_checkpointing(&self) -> bool {
        self.gradient_checkpointing
    }

    /// The same pass, recorded by a different graph.
    #[must_use]
    pub fn recorded_by(&self, graph: &Graph) -> Self {
        Self { graph: graph.clone(), ..self.clone() }
    }

    /// The same pass for layers that are given these rows: (sample, position) each.
    #[must_use]
    pub fn on_rows(&self, rows: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let dropout = self.dropout.as_ref().map(|Dropout { seed, first_sample, .. }| {
            let names =
                rows.into_iter().map(|(sample, position)| ((first_sample + sample) as u64) << 32 | position as u64);
            Dropout { seed: *seed, first_sample: *first_sample, rows: names.collect() }
        });
        Self { dropout, ..self.clone() }
    }

    /// What this pass drops: nothing at inference.
    pub(super) fn dropout(&self) -> Option<&Dropout> {
        self.dropout.as_ref()
    }
}
