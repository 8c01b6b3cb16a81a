//! How much memory a training step takes, computed from sizes before anything is loaded: what trains, its gradients and
//! moments, and what the operations in [`crate::tensor`] keep for the backward pass. `tests/memory.rs` compares it with
//! what the allocator sees.

use crate::{
    config::{LanguageConfig, ProjectorType, SiglipConfig},
    language::{Input, Layer, Part, family::is_target},
};

/// Bytes of an f32.
const F32: usize = 4;
/// Logits that are in memory at a time in training: 64 MB.
pub(crate) const LOGITS: usize = 1 << 24;

/// What trains besides the projector.
#[derive(Clone, Copy, Debug)]
pub enum Trains<'a> {
    /// Nothing.
    Projector,
    /// LoRA adapters, on the layers with these names or on all.
    Adapters {
        /// Width of the bottleneck.
        rank: usize,
        /// Whether any of their inputs is dropped.
        dropout: bool,
        /// As in [`crate::language::Decoder::adapt`].
        targets: &'a [String],
    },
    /// The whole language model.
    All,
}

/// The samples that go through the model at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Positions of all sequences, images spliced in.
    pub rows: usize,
    /// Positions with a label.
    pub learned: usize,
    /// Images.
    pub images: usize,
}

/// A model that trains.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// The language model.
    pub llm: &'a LanguageConfig,
    /// The vision encoder.
    pub vision: &'a SiglipConfig,
    /// The layers of the projector.
    pub projector: ProjectorType,
    /// What trains besides the projector.
    pub trains: Trains<'a>,
    /// Whether blocks are recomputed in the backward pass.
    pub gradient_checkpointing: bool,
}

/// Peak bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What trains, in f32.
    pub parameters: usize,
    /// `AdamW`'s two moments of each.
    pub optimizer: usize,
    /// Gradients of what trains.
    pub gradients: usize,
    /// What the forward pass keeps, and what the backward pass computes from it.
    pub activations: usize,
}

impl Memory {
    /// The sum.
    pub fn total(&self) -> usize {
        self.parameters + self.optimizer + self.gradients + self.activations
    }
}

impl Training<'_> {
    /// The memory of a step whose largest micro-batch is `largest`. `parts`: whether a batch has more than one micro-batch,
    /// whose gradients are added up.
    pub fn memory(&self, largest: MicroBatch, parts: bool) -> Memory {
        let trained = self.trained();
        let summed = if parts { trained } else { 0 };
        let kept = self.kept(largest);
        // At the loss, in the last block, and at the end: which is the largest depends on the sizes.
        let moments = [
            (self.head_gradients(largest), kept + self.loss(largest)),
            (self.head_trained(), kept + self.block_backward(largest)),
            (trained, 0),
        ];
        let (gradients, activations) = moments.into_iter().max_by_key(|(a, b)| a + b).unwrap_or_default();
        Memory {
            parameters: trained * F32,
            optimizer: 2 * trained * F32,
            gradients: (gradients + summed) * F32,
            activations: activations * F32,
        }
    }

    /// Values that train.
    pub fn trained(&self) -> usize {
        let family = self.llm.family;
        let blocks: usize = family.block_layers().iter().map(|layer| self.linear_trained(layer)).sum();
        let hidden = self.llm.hidden_size;
        let others = match self.trains {
            Trains::All => {
                let norms = self.llm.num_hidden_layers * family.description().block_norms.len() + 1;
                let embedding = if self.llm.tie_word_embeddings { 0 } else { self.llm.vocab_size * hidden };
                norms * self.llm.norm_parameters() + embedding
            }
            Trains::Projector | Trains::Adapters { .. } => 0,
        };
        let layers = self.projector.depth();
        let projector: usize =
            (0..layers).map(|layer| hidden * (1 + if layer == 0 { self.vision.hidden_size } else { hidden })).sum();
        self.llm.num_hidden_layers * blocks + self.head_trained() + others + projector
    }

    fn head_trained(&self) -> usize {
        self.linear_trained(self.llm.family.head())
    }

    /// Values of one linear layer that train: its adapter's, or its own.
    fn linear_trained(&self, layer: &Layer) -> usize {
        let (outputs, inputs, bias) = self.llm.linear_shape(layer);
        match self.trains {
            Trains::Adapters { rank, .. } if self.adapts(layer) => rank * (outputs + inputs),
            Trains::All => outputs * (inputs + usize::from(bias)),
            Trains::Projector | Trains::Adapters { .. } => 0,
        }
    }

    fn adapts(&self, layer: &Layer) -> bool {
        let Trains::Adapters { targets, .. } = self.trains else { return false };
        is_target(targets, layer.short_name())
    }

    /// Whether the layer's input is kept for the gradient of its weights; if so, whether as a copy of its own, with dropout
    /// applied.
    fn keeps_input(&self, layer: &Layer) -> Option<bool> {
        match self.trains {
            Trains::Adapters { dropout, .. } => self.adapts(layer).then_some(dropout),
            Trains::All => Some(false),
            Trains::Projector => None,
        }
    }

    /// What the forward pass keeps.
    fn kept(&self, batch: MicroBatch) -> usize {
        let MicroBatch { rows, images, .. } = batch;
        let hidden = self.llm.hidden_size;
        let per_block = if self.gradient_checkpointing { hidden } else { self.block_kept() };
        // The final norm's input, and the angles of all positions.
        let row = self.llm.num_hidden_layers * per_block + hidden + self.llm.rotary_dims;
        let patches = images * self.vision.patches();
        // The input of each layer, and of each GELU between two of them.
        let projector = match self.projector.depth() {
            0 => 0,
            layers => self.vision.hidden_size + 2 * (layers - 1) * hidden,
        };
        rows * row + patches * projector
    }

    /// Values that a block keeps of each row.
    fn block_kept(&self) -> usize {
        let llm = self.llm;
        let (hidden, inner) = (llm.hidden_size, llm.intermediate_size);
        let (queries, keys) = (llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim);
        let (layers, norms) = (llm.family.block_layers(), llm.family.description().block_norms.len());
        let attention = 2 * queries + 2 * keys + llm.num_attention_heads;
        let activation = if llm.family.is_gated() { 2 * inner } else { inner };
        let copied = layers.iter().filter(|layer| self.keeps_input(layer) == Some(true));
        let copies: usize = copied.map(|layer| llm.linear_shape(layer).1).sum();
        // What several layers read is kept once; what attention gives is kept in any case.
        let shared = |input: Input| {
            layers.iter().any(|layer| layer.part.input() == input && self.keeps_input(layer) == Some(false))
        };
        let (before_attention, before_mlp) = (shared(Input::AttentionNorm), shared(Input::MlpNorm));
        let normed = match norms {
            1 => usize::from(before_attention || before_mlp),
            _ => usize::from(before_attention) + usize::from(before_mlp),
        };
        let before_down = if shared(Input::Inner) { inner } else { 0 };
        let low: usize = match self.trains {
            Trains::Adapters { rank, .. } => rank * layers.iter().filter(|layer| self.adapts(layer)).count(),
            Trains::Projector | Trains::All => 0,
        };
        norms * (hidden + 2) + attention + activation + copies + normed * hidden + before_down + low
    }

    /// What the backward pass allocates in the last block, besides what is kept.
    fn block_backward(&self, batch: MicroBatch) -> usize {
        let (hidden, inner) = (self.llm.hidden_size, self.llm.intermediate_size);
        let family = self.llm.family;
        let streams = if family.description().block_norms.len() == 1 { 3 } else { 2 };
        // Through the activation, one gradient in and one or two out. By then its output is no longer kept.
        let middle = if family.is_gated() { 3 * inner } else { 2 * inner };
        let down_keeps_input = family.layer(Part::Down).is_some_and(|down| self.keeps_input(down).is_some());
        let middle = if down_keeps_input { middle - inner } else { middle };
        let again = if self.gradient_checkpointing { self.block_kept() + hidden } else { 0 };
        let own: usize = family.block_layers().iter().map(|layer| self.linear_trained(layer)).sum();
        let own = if self.gradient_checkpointing { 2 * own } else { own };
        batch.rows * (streams * hidden + middle + again) + batch.learned * hidden + own
    }

    /// Hidden states at labelled positions, and the logits that are in memory at a time.
    fn loss(&self, batch: MicroBatch) -> usize {
        let (hidden, vocab) = (self.llm.hidden_size, self.llm.vocab_size);
        let at_once = logits_at_once(vocab).min(batch.learned);
        let copies = if self.keeps_input(self.llm.family.head()) == Some(true) { 2 } else { 0 };
        batch.rows * hidden + batch.learned * 2 * hidden + at_once * (2 * vocab + (2 + copies) * hidden)
    }

    /// Gradients of the output layer, which exist before all others: the sum over earlier chunks of rows, and this chunk's.
    fn head_gradients(&self, batch: MicroBatch) -> usize {
        let parts = batch.learned.div_ceil(logits_at_once(self.llm.vocab_size)).min(2);
        parts * self.head_trained()
    }
}

/// Rows whose logits are in memory at a time.
pub(crate) fn logits_at_once(vocab_size: usize) -> usize {
    (LOGITS / vocab_size).max(1)
}
