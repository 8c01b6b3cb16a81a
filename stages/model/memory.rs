//! Forecasts the memory of a training step from sizes alone: trainable parameters, their gradients and moments, and
//! what the operations in [`crate::tensor`] save for the backward pass. `tests/memory.rs` compares the forecast with
//! the allocator.

use crate::{
    Precision,
    config::{LanguageConfig, ProjectorType, VisionConfig},
    family::{Input, Layer, Part, is_target},
};

/// Size of an f32 in bytes.
const F32: usize = 4;
/// Number of logits in memory at a time in training: 64 MB.
const LOGITS: usize = 1 << 24;

/// What trains besides the projector.
#[derive(Clone, Copy, Debug)]
pub enum Trains<'a> {
    /// Nothing.
    Projector,
    /// LoRA adapters.
    Adapters {
        /// Rows of A and columns of B.
        rank: usize,
        /// Whether their inputs have dropout.
        dropout: bool,
        /// Whether they have DoRA's magnitudes.
        dora: bool,
        /// The targeted layers, as in [`crate::language::Decoder::adapt`]: empty for all.
        targets: &'a [String],
    },
    /// The whole language model.
    All,
}

/// The size of the samples in one forward and backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Positions of all sequences after the splice.
    pub rows: usize,
    /// Labelled positions.
    pub learned: usize,
    /// Images.
    pub images: usize,
}

/// A model in training.
#[derive(Clone, Copy, Debug)]
pub struct Training<'a> {
    /// The language model.
    pub llm: &'a LanguageConfig,
    /// The vision encoder.
    pub vision: &'a VisionConfig,
    /// The projector's layers.
    pub projector: ProjectorType,
    /// What trains besides the projector.
    pub trains: Trains<'a>,
    /// Number of the encoder's last blocks that train, too.
    pub vision_layers: usize,
    /// Whether the backward pass recomputes the blocks' activations.
    pub gradient_checkpointing: bool,
}

/// What is saved of the input of a layer whose weights or adapter train.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SavedInput {
    /// The input itself, which other layers and operations may share.
    Shared,
    /// A copy with dropout applied.
    Dropped,
}

/// Number of values that a block saves for each row.
struct BlockSaved {
    /// Up to the values of the heads.
    to_heads: usize,
    /// From there on.
    after: usize,
    /// Copies of those of some rows, if the block goes on with these only.
    picked: usize,
}

impl BlockSaved {
    fn sum(&self) -> usize {
        self.to_heads + self.after
    }
}

/// Memory of a training step at its peak, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Trainable parameters, in f32.
    pub parameters: usize,
    /// Both moments of `AdamW`.
    pub optimizer: usize,
    /// Gradients of the trainable parameters.
    pub gradients: usize,
    /// Activations saved for the backward pass, and its temporary buffers.
    pub activations: usize,
}

impl Memory {
    /// The sum of all four.
    pub fn total(&self) -> usize {
        self.parameters + self.optimizer + self.gradients + self.activations
    }
}

impl Training<'_> {
    /// Forecasts a step whose largest micro-batch is `largest`. `accumulates` tells whether a batch has more than one
    /// micro-batch, so that gradients are accumulated in separate buffers.
    pub fn memory(&self, largest: MicroBatch, accumulates: bool) -> Memory {
        self.stored(largest, accumulates, F32)
    }

    /// The same for a device, which stores activations in the precision of products.
    pub fn device_memory(&self, largest: MicroBatch, accumulates: bool, precision: Precision) -> Memory {
        self.stored(largest, accumulates, precision.bytes())
    }

    /// Forecasts a step whose activations have `size` bytes per value.
    fn stored(&self, largest: MicroBatch, accumulates: bool, size: usize) -> Memory {
        let trained = self.trained();
        let accumulated = if accumulates { trained } else { 0 };
        let saved = self.saved(largest);
        // In the loss, in the last block, in the one before it, and at the end of the backward pass: the sizes determine where the
        // peak is.
        let mut candidates = vec![
            (self.head_gradients(largest), saved + self.loss(largest)),
            (self.head_trained() + self.block_gradients(), saved + self.last_block_backward(largest)),
            (trained, self.vision_saved(largest)),
        ];
        if self.llm.num_hidden_layers > 1 {
            let gradients = self.head_trained() + self.block_trained() + self.block_gradients();
            candidates.push((gradients, saved - self.last_saved(largest) + self.block_backward(largest)));
        }
        let (gradients, activations) = candidates.into_iter().max_by_key(|(a, b)| a + b).unwrap_or_default();
        Memory {
            parameters: trained * F32,
            optimizer: 2 * trained * F32,
            gradients: (gradients + accumulated) * F32,
            activations: activations * size,
        }
    }

    /// Number of trainable parameters.
    pub fn trained(&self) -> usize {
        let family = self.llm.family;
        let hidden = self.llm.hidden_size;
        let others = match self.trains {
            Trains::All => {
                let norms = self.llm.num_hidden_layers * family.description().block_norms.len() + 1;
                let embedding = if self.llm.tie_word_embeddings { 0 } else { self.llm.vocab_size * hidden };
                norms * self.llm.norm_parameters() + embedding
            }
            Trains::Projector | Trains::Adapters { .. } => 0,
        };
        self.llm.num_hidden_layers * self.block_trained()
            + self.head_trained()
            + others
            + self.projector_trained()
            + self.vision_trained()
    }

    /// Those of the projector.
    pub(crate) fn projector_trained(&self) -> usize {
        let (hidden, layers) = (self.llm.hidden_size, self.projector.depth());
        (0..layers).map(|layer| hidden * (1 + if layer == 0 { self.vision.hidden_size } else { hidden })).sum()
    }

    /// Number of trainable parameters of the vision encoder.
    pub fn vision_trained(&self) -> usize {
        self.vision_layers * self.vision.block_parameters()
    }

    /// Those of a block of the language model, but for its norms.
    fn block_trained(&self) -> usize {
        self.llm.family.block_layers().iter().map(|layer| self.linear_trained(layer)).sum()
    }

    fn head_trained(&self) -> usize {
        self.linear_trained(self.llm.family.head())
    }

    /// Trainable parameters of one linear layer: its adapter's or its own.
    fn linear_trained(&self, layer: &Layer) -> usize {
        let (outputs, inputs, bias) = self.llm.linear_shape(layer);
        match self.trains {
            Trains::Adapters { rank, dora, .. } if self.adapts(layer) => {
                rank * (outputs + inputs) + if dora { outputs } else { 0 }
            }
            Trains::All => outputs * (inputs + usize::from(bias)),
            Trains::Projector | Trains::Adapters { .. } => 0,
        }
    }

    /// Width of the output that a layer with DoRA saves for the gradient of its magnitudes.
    fn saved_output(&self, layer: &Layer) -> usize {
        let has_dora = matches!(self.trains, Trains::Adapters { dora: true, .. }) && self.adapts(layer);
        if has_dora { self.llm.linear_shape(layer).0 } else { 0 }
    }

    /// Whether layers with magnitudes have dropout, and so use their weight twice.
    fn computes_twice(&self) -> bool {
        matches!(self.trains, Trains::Adapters { dora: true, dropout: true, .. })
    }

    /// Whether the layer has an adapter.
    pub(crate) fn adapts(&self, layer: &Layer) -> bool {
        let Trains::Adapters { targets, .. } = self.trains else { return false };
        is_target(targets, layer.short_name())
    }

    /// Which copy of the layer's input is saved for the gradient of its trainable weights, if they exist.
    fn saved_input(&self, layer: &Layer) -> Option<SavedInput> {
        let of_adapter = |dropout| if dropout { SavedInput::Dropped } else { SavedInput::Shared };
        match self.trains {
            Trains::Adapters { dropout, .. } => self.adapts(layer).then(|| of_adapter(dropout)),
            Trains::All => Some(SavedInput::Shared),
            Trains::Projector => None,
        }
    }

    /// Number of values that the forward pass saves.
    fn saved(&self, batch: MicroBatch) -> usize {
        let MicroBatch { rows, learned, images } = batch;
        let hidden = self.llm.hidden_size;
        let per_block = if self.gradient_checkpointing { hidden } else { self.block_saved().sum() };
        let blocks = (self.llm.num_hidden_layers - 1) * per_block * rows + self.last_saved(batch);
        // The final norm's input, and the table of rotations.
        let others = learned * hidden + rows * self.llm.rotary_dims;
        let patches = images * self.vision.patches();
        // The input of each layer and of each GELU.
        let projector = match self.projector.depth() {
            0 => 0,
            layers => self.vision.hidden_size + 2 * (layers - 1) * hidden,
        };
        blocks + others + patches * projector + self.vision_saved(batch)
    }

    /// Number of values that the encoder's blocks that train save: inputs and statistics of the norms, what these give, queries,
    /// keys, values and the output of attention, the MLP before and after its activation, and branches that are scaled.
    fn vision_saved(&self, batch: MicroBatch) -> usize {
        let (vision, width) = (self.vision, self.vision.hidden_size);
        let scaled = if vision.encoder.description().parts.scales.is_some() { 2 * width } else { 0 };
        let token = 2 * (width + 2) + 2 * width + 4 * width + vision.num_attention_heads + 2 * vision.intermediate_size;
        self.vision_layers * batch.images * vision.tokens() * (token + scaled)
    }

    /// Number of values that the last block saves, which goes on from attention with labelled rows only.
    fn last_saved(&self, batch: MicroBatch) -> usize {
        let (hidden, BlockSaved { to_heads, after, picked }) = (self.llm.hidden_size, self.block_saved());
        if self.gradient_checkpointing {
            batch.rows * hidden
        } else {
            batch.rows * to_heads + batch.learned * (after + picked)
        }
    }

    /// Number of values that a block saves per row.
    fn block_saved(&self) -> BlockSaved {
        let llm = self.llm;
        let (hidden, inner) = (llm.hidden_size, llm.intermediate_size);
        let (queries, keys) = (llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim);
        let (layers, norms) = (llm.family.block_layers(), llm.family.description().block_norms.len());
        let attention = 2 * queries + 2 * keys + llm.num_attention_heads;
        let activation = if llm.family.is_gated() { 2 * inner } else { inner };
        // Copies of inputs, inner values of adapters, and outputs that magnitudes need.
        let of_layers = |before: bool| -> usize {
            let own = layers.iter().filter(|layer| (layer.part.input() == Input::AttentionNorm) == before);
            own.map(|layer| self.layer_saved(layer)).sum()
        };
        // An input that several layers read is saved once; attention always saves its output, the input of O.
        let shared = |input: Input| {
            layers
                .iter()
                .any(|layer| layer.part.input() == input && self.saved_input(layer) == Some(SavedInput::Shared))
        };
        let width = |saved: bool, width: usize| if saved { width } else { 0 };
        let (before_attention, before_mlp) = (shared(Input::AttentionNorm), shared(Input::MlpNorm));
        let one_norm = norms == 1;
        let to_heads = hidden + 2 + attention + of_layers(true) + width(before_attention, hidden);
        let second_norm = width(!one_norm, hidden + 2) + width(before_mlp && !(one_norm && before_attention), hidden);
        let after = second_norm + activation + of_layers(false) + width(shared(Input::Inner), inner);
        let picked =
            width(shared(Input::Attended), queries) + width(one_norm && before_attention && before_mlp, hidden);
        BlockSaved { to_heads, after, picked }
    }

    /// Number of values that a layer saves per row, besides inputs that it shares.
    fn layer_saved(&self, layer: &Layer) -> usize {
        let copy =
            if self.saved_input(layer) == Some(SavedInput::Dropped) { self.llm.linear_shape(layer).1 } else { 0 };
        let low = match self.trains {
            Trains::Adapters { rank, .. } if self.adapts(layer) => rank,
            Trains::Adapters { .. } | Trains::Projector | Trains::All => 0,
        };
        copy + low + self.saved_output(layer)
    }

    /// Number of gradient values of a block's trainable parameters while it is passed; twice with checkpointing, which adds those of
    /// the recomputed block to the others.
    fn block_gradients(&self) -> usize {
        if self.gradient_checkpointing { 2 * self.block_trained() } else { self.block_trained() }
    }

    /// Number of values that the backward pass allocates in a block, besides those of [`Self::block_gradients`].
    fn block_backward(&self, batch: MicroBatch) -> usize {
        let recomputed = if self.gradient_checkpointing { self.block_saved().sum() + self.llm.hidden_size } else { 0 };
        batch.rows * (self.after_heads_backward() + recomputed)
    }

    /// The same in the last block: after attention with labelled rows only, then the gradients of what these were picked from, and of
    /// queries, keys and values.
    fn last_block_backward(&self, batch: MicroBatch) -> usize {
        let (llm, hidden) = (self.llm, self.llm.hidden_size);
        let (queries, keys) = (llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim);
        let BlockSaved { to_heads, after, picked } = self.block_saved();
        let recomputed = |values: usize| if self.gradient_checkpointing { values } else { 0 };
        let after_heads = batch.learned * (self.after_heads_backward() + recomputed(after));
        let in_attention = batch.rows * (2 * hidden + 2 * queries + 2 * keys);
        let before = recomputed(batch.rows * to_heads + batch.learned * (picked + hidden));
        before + after_heads.max(in_attention) + batch.learned * hidden
    }

    /// Number of values per row that the backward pass allocates at most from a block's end to its heads.
    fn after_heads_backward(&self) -> usize {
        let (hidden, inner) = (self.llm.hidden_size, self.llm.intermediate_size);
        let family = self.llm.family;
        let streams = if family.description().block_norms.len() == 1 { 3 } else { 2 };
        // The gradient of the last layer's input, while that is still saved, if it is; then the activation turns this gradient into
        // another, or into two if it is gated.
        let down_saves_input = family.layer(Part::Down).is_some_and(|down| self.saved_input(down).is_some());
        let middle = if family.is_gated() && !down_saves_input { 2 * inner } else { inner };
        // With dropout a layer with magnitudes has a second input, output and their gradients.
        let second = if self.computes_twice() { hidden + inner } else { 0 };
        streams * hidden + middle + second
    }

    /// Number of values that the loss allocates: hidden states at labelled positions, and one chunk of logits.
    fn loss(&self, batch: MicroBatch) -> usize {
        let (hidden, vocab) = (self.llm.hidden_size, self.llm.vocab_size);
        let chunk_rows = loss_chunk_rows(vocab).min(batch.learned);
        let copies = if self.saved_input(self.llm.family.head()) == Some(SavedInput::Dropped) { 2 } else { 0 };
        let outputs = self.saved_output(self.llm.family.head()) * if self.computes_twice() { 2 } else { 1 };
        batch.learned * 2 * hidden + chunk_rows * (2 * vocab + outputs + (2 + copies) * hidden)
    }

    /// Number of gradient values in the loss, all of the output layer: those of one chunk, and the sum over earlier
    /// chunks.
    fn head_gradients(&self, batch: MicroBatch) -> usize {
        let copies = batch.learned.div_ceil(loss_chunk_rows(self.llm.vocab_size)).min(2);
        copies * self.head_trained()
    }
}

/// Number of rows per chunk of the loss, whose logits take at most 64 MB.
pub(crate) fn loss_chunk_rows(vocab_size: usize) -> usize {
    (LOGITS / vocab_size).max(1)
}
