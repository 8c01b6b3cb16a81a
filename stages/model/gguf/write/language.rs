//! The language model in a GGUF file: its settings and tensors. Source: llama.cpp's `convert_hf_to_gguf.py`.

use super::{
    super::names,
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

/// The tensors, each with its encoding.
pub(super) fn tensors(llm: &Decoder, mixture: Mixture) -> Vec<(NamedTensor<'_>, Encoding)> {
    let config = llm.merged_config();
    let tied = config.tie_word_embeddings;
    llm.tensors().into_iter().filter_map(|tensor| tensor_of(tensor, &config, mixture, tied)).collect()
}

fn tensor_of<'a>(
    tensor: NamedTensor<'a>,
    config: &LanguageConfig,
    mixture: Mixture,
    tied: bool,
) -> Option<(NamedTensor<'a>, Encoding)> {
    // Every tensor of a model has a place.
    let place = names::of_language(config.family, &tensor.name)?;
    let [_, width] = tensor.shape[..] else { return Some((tensor.renamed(place.name), Encoding::F32)) };
    let role = match (place.part, place.layer) {
        (Some(Part::LmHead), _) => Role::Output,
        (None, None) if tied => Role::Output,
        (None, None) => Role::Embedding,
        (Some(Part::V | Part::Down), Some(layer)) => Role::Delicate { layer, layers: config.num_hidden_layers },
        (Some(Part::Qkv), _) => Role::Fused,
        _ => Role::Other,
    };
    let heads = match (config.family, place.part) {
        (Family::Llama, Some(Part::Q)) => Some(config.num_attention_heads),
        (Family::Llama, Some(Part::K)) => Some(config.num_key_value_heads),
        _ => None,
    };
    let tensor = tensor.renamed(place.name);
    Some((if let Some(heads) = heads { interleaved(tensor, heads) } else { tensor }, mixture.encoding(role, width)))
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
