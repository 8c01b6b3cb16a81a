//! Settings that training chooses by the size of the model unless the pipeline gives them. They do not affect the result.

use imp_model::config::LanguageConfig;

use crate::contract::job::Runtime;

/// Samples that go through the model at once.
const MICRO_BATCH: usize = 16;
/// The same for large models.
const LARGE_MICRO_BATCH: usize = 1;
/// From this many weights on a model is large: its blocks are recomputed in the backward pass.
const LARGE: usize = 1_000_000_000;

/// Samples that go through `llm` at once.
pub(super) fn micro_batch_size(runtime: &Runtime, llm: &LanguageConfig) -> usize {
    match runtime.micro_batch_size {
        0 if llm.parameters() >= LARGE => LARGE_MICRO_BATCH,
        0 => MICRO_BATCH,
        size => size,
    }
}

/// Whether the backward pass recomputes the blocks of `llm`.
pub(super) fn gradient_checkpointing(runtime: &Runtime, llm: &LanguageConfig) -> bool {
    runtime.gradient_checkpointing.unwrap_or(llm.parameters() >= LARGE)
}
