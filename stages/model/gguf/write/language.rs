//! The language model in a GGUF file: its settings and tensors. Source: llama.cpp's `convert_hf_to_gguf.py`.

use super::{
    super::{
        interleaved_heads,
        names::{self, Place},
        rotary,
        setting::Setting,
    },
    container::Keys,
    mixture::{Mixture, Role},
};
use crate::{
    config::LanguageConfig,
    encoding::Encoding,
    family::{Family, Part},
    language::Decoder,
    layers::Importance,
    weights::NamedTensor,
};

/// What the file says of the network. `trained` is the longest sequence that the Imp was trained with: llama.cpp reads no more than the
/// context that the file names, and takes all of it unless it is told otherwise.
pub(in crate::gguf) fn settings(config: &LanguageConfig, trained: usize) -> Vec<(String, Setting)> {
    // In a context beyond that, it would turn all positions in another way.
    let context = config.fixed_until().unwrap_or(config.max_position_embeddings.max(trained));
    let architecture = names::architecture(config.family);
    let key = |name: &str| format!("{architecture}.{name}");
    let mut all = vec![("general.architecture".to_string(), Setting::Text(architecture))];
    for (name, value) in [
        ("context_length", context),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("block_count", config.num_hidden_layers),
        ("attention.head_count", config.num_attention_heads),
        ("attention.head_count_kv", config.num_key_value_heads),
        ("rope.dimension_count", config.rotary_dims),
        ("vocab_size", config.vocab_size),
    ] {
        all.push((key(name), Setting::Number(value)));
    }
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        all.push((key("attention.key_length"), Setting::Number(config.head_dim)));
        all.push((key("attention.value_length"), Setting::Number(config.head_dim)));
    }
    if config.family == Family::Phi3 {
        // Up to there llama.cpp takes the divisors of short sequences, if there are some.
        all.push((key("rope.scaling.original_context_length"), Setting::Number(context)));
        // llama.cpp requires it; a window of the whole context changes nothing.
        all.push((key("attention.sliding_window"), Setting::Number(config.sliding_window.unwrap_or(context))));
    }
    all.extend(rotary::settings(config));
    let rms = config.family.description().rms_norms;
    let epsilon = if rms { "attention.layer_norm_rms_epsilon" } else { "attention.layer_norm_epsilon" };
    all.push((key("rope.freq_base"), Setting::Float(config.rope_theta)));
    all.push((key(epsilon), Setting::Float(config.norm_eps)));
    all
}

pub(super) fn describe(keys: &mut Keys, config: &LanguageConfig, trained: usize, mixture: Mixture, name: &str) {
    keys.text("general.type", "model");
    keys.text("general.name", name);
    keys.number("general.file_type", mixture.number());
    keys.number("general.quantization_version", 2);
    for (key, setting) in &settings(config, trained) {
        keys.set(key, setting);
    }
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
pub(super) fn plan<'a>(llm: &'a Decoder, mixture: Mixture, importance: &Importance) -> Result<Plan<'a>, String> {
    let config = llm.merged_config();
    let mut plan = Plan { tensors: Vec::new(), matrices: 0, replaced: 0 };
    for tensor in importance.noted(llm.tensors()) {
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
    let (name, shape, importance) = (tensor.name.clone(), tensor.shape.clone(), tensor.importance.clone());
    let (rows, width) = (shape[0], shape[1]);
    let head = (rows / heads).max(2);
    NamedTensor::by_rows(name, rows, width, move |wanted| {
        // Whole heads, in which every row has its place.
        let first = wanted.start / head * head;
        let values = tensor.piece(first..wanted.end.next_multiple_of(head).min(rows));
        let row = |row: usize| {
            let (start, index) = (row / head * head, row % head);
            let from = start - first + index / 2 + index % 2 * (head / 2);
            &values[from * width..(from + 1) * width]
        };
        wanted.flat_map(row).copied().collect()
    })
    .weighing(importance)
}
