//! The language model in a GGUF file: its settings and tensors. Source: llama.cpp's `convert_hf_to_gguf.py`.

use super::{
    super::{
        interleaved_heads,
        names::{self, Place},
    },
    container::Keys,
    mixture::{Mixture, Role},
};
use crate::{
    config::LanguageConfig,
    encoding::Encoding,
    family::{Family, Part},
    language::Decoder,
    weights::NamedTensor,
};

pub(super) fn describe(keys: &mut Keys, config: &LanguageConfig, mixture: Mixture, name: &str) {
    let architecture = names::architecture(config.family);
    keys.text("general.architecture", architecture);
    keys.text("general.type", "model");
    keys.text("general.name", name);
    keys.number("general.file_type", mixture.number());
    keys.number("general.quantization_version", 2);
    let key = |name: &str| format!("{architecture}.{name}");
    for (name, value) in [
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("block_count", config.num_hidden_layers),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("rope.dimension_count", config.rotary_dims),
        ("vocab_size", config.vocab_size),
    ] {
        keys.number(&key(name), value);
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        keys.number(&key("attention.key_length"), config.head_dim);
        keys.number(&key("attention.value_length"), config.head_dim);
    }
    if config.family == Family::Phi3 {
        keys.number(&key("rope.scaling.original_context_length"), config.max_position_embeddings);
        // llama.cpp requires it; a window of the whole context changes nothing.
        keys.number(&key("attention.sliding_window"), config.sliding_window.unwrap_or(config.max_position_embeddings));
    }
    keys.float(&key("rope.freq_base"), config.rope_theta);
    let rms = config.family.description().rms_norms;
    let epsilon = if rms { "attention.layer_norm_rms_epsilon" } else { "attention.layer_norm_epsilon" };
    keys.float(&key(epsilon), config.norm_eps);
}

/// What is written.
pub(super) struct Plan<'a> {
    /// The tensors, each with its encoding.
    pub(super) tensors: Vec<(NamedTensor<'a>, Encoding)>,
    /// Number of matrices.
    pub(super) matrices: usize,
    /// Of these, in another encoding than the mixture's, whose blocks don't divide their rows.
    pub(super) replaced: usize,
}

/// Gives every tensor its name and encoding.
///
/// # Errors
/// Names a tensor for which llama.cpp has no place.
pub(super) fn plan(llm: &Decoder, mixture: Mixture) -> Result<Plan<'_>, String> {
    let config = llm.merged_config();
    let mut plan = Plan { tensors: Vec::new(), matrices: 0, replaced: 0 };
    for tensor in llm.tensors() {
        let Some(place) = names::of_language(config.family, &tensor.name) else { return Err(tensor.name) };
        let [_, width] = tensor.shape[..] else {
            plan.tensors.push((tensor.renamed(place.name), Encoding::F32));
            continue;
        };
        let role = role(&place, &config);
        let encoding = mixture.encoding(role, width);
        plan.matrices += 1;
        plan.replaced += usize::from(encoding != mixture.wanted(role));
        let heads = interleaved_heads(&config, place.part);
        let tensor = tensor.renamed(place.name);
        plan.tensors.push((if let Some(heads) = heads { interleaved(tensor, heads) } else { tensor }, encoding));
    }
    Ok(plan)
}

fn role(place: &Place, config: &LanguageConfig) -> Role {
    match (place.part, place.layer) {
        (Some(Part::LmHead), _) => Role::Output,
        (None, None) if config.tie_word_embeddings => Role::Output,
        (None, None) => Role::Embedding,
        (Some(Part::V | Part::Down), Some(layer)) => Role::Delicate { layer, layers: config.num_hidden_layers },
        (Some(Part::Qkv), _) => Role::Fused,
        _ => Role::Other,
    }
}

/// llama.cpp rotates adjacent dimensions of a Llama's head, Hugging Face's code dimensions half a head apart: the rows of each head
/// of a q or k weight are interleaved.
fn interleaved(tensor: NamedTensor<'_>, heads: usize) -> NamedTensor<'_> {
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    let (rows, width) = (shape[0], shape[1]);
    let head = (rows / heads).max(2);
    NamedTensor::new(name, shape, move || {
        let values = tensor.values();
        let row = |row: usize| {
            let (start, index) = (row / head * head, row % head);
            let from = start + index / 2 + index % 2 * (head / 2);
            &values[from * width..(from + 1) * width]
        };
        (0..rows).flat_map(row).copied().collect()
    })
}
