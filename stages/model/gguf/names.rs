//! llama.cpp's names of tensors and architectures, beside ours. Source: llama.cpp's `gguf-py/gguf/constants.py` and
//! `tensor_mapping.py`, and `clip-impl.h` for the vision tower.

use crate::family::{Family, Part};

/// The name of a family's architecture.
pub(super) fn architecture(family: Family) -> &'static str {
    match family {
        Family::Phi => "phi2",
        Family::Qwen2 => "qwen2",
        Family::Llama => "llama",
        Family::Phi3 => "phi3",
    }
}

/// The name of a linear layer, within a block but for the output layer.
pub(super) fn linear(part: Part) -> &'static str {
    match part {
        Part::Q => "attn_q",
        Part::K => "attn_k",
        Part::V => "attn_v",
        Part::Qkv => "attn_qkv",
        Part::O => "attn_output",
        Part::Gate => "ffn_gate",
        // Phi-3's gate and up in one matrix have the name of up.
        Part::Up | Part::GateUp => "ffn_up",
        Part::Down => "ffn_down",
        Part::LmHead => "output",
    }
}

/// The norms of a block: ours, llama.cpp's.
const NORMS: [(&str, &str); 2] = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];
/// Layers of the vision tower within a block.
const TOWER: [(&str, &str); 8] = [
    ("layer_norm1", "ln1"),
    ("layer_norm2", "ln2"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.out_proj", "attn_out"),
    ("mlp.fc1", "ffn_up"),
    ("mlp.fc2", "ffn_down"),
];
/// The rest of tower and projector.
const OTHERS: [(&str, &str); 4] = [
    ("embeddings.patch_embedding", "v.patch_embd"),
    ("embeddings.position_embedding", "v.position_embd"),
    ("model.mm_projector.0", "mm.0"),
    ("model.mm_projector.2", "mm.2"),
];

/// A tensor of a language model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// llama.cpp's name.
    pub(super) name: String,
    /// The index of its block.
    pub(super) layer: Option<usize>,
    /// The linear layer that it belongs to.
    pub(super) part: Option<Part>,
}

/// llama.cpp's place of the language model's tensor `name`.
pub(super) fn of_language(family: Family, name: &str) -> Option<Place> {
    let (stem, kind) = name.rsplit_once('.')?;
    let whole = |theirs: &str, part| Place { name: format!("{theirs}.{kind}"), layer: None, part };
    if stem == "model.embed_tokens" {
        return Some(whole("token_embd", None));
    }
    if stem == family.description().final_norm {
        return Some(whole("output_norm", None));
    }
    if stem == family.head().name {
        return Some(whole("output", Some(Part::LmHead)));
    }
    let (layer, within) = stem.strip_prefix("model.layers.")?.split_once('.')?;
    let part = family.block_layers().iter().find(|layer| layer.name == within).map(|layer| layer.part);
    let norm = NORMS.iter().find(|(ours, _)| *ours == within).map(|(_, theirs)| *theirs);
    let theirs = part.map(linear).or(norm)?;
    Some(Place { name: format!("blk.{layer}.{theirs}.{kind}"), layer: layer.parse().ok(), part })
}

/// Our name of the language model's tensor that llama.cpp calls `name`, with the layer that it belongs to.
pub(super) fn to_language(family: Family, name: &str) -> Option<(String, Option<Part>)> {
    let (stem, kind) = name.rsplit_once('.')?;
    match stem {
        "token_embd" => return Some((format!("model.embed_tokens.{kind}"), None)),
        "output_norm" => return Some((format!("{}.{kind}", family.description().final_norm), None)),
        "output" => return Some((format!("{}.{kind}", family.head().name), Some(Part::LmHead))),
        _ => {}
    }
    let (layer, within) = stem.strip_prefix("blk.")?.split_once('.')?;
    let found = family.block_layers().iter().find(|layer| linear(layer.part) == within);
    let norm = NORMS.iter().find(|(_, theirs)| *theirs == within).map(|(ours, _)| *ours);
    let ours = found.map(|layer| layer.name).or(norm)?;
    Some((format!("model.layers.{layer}.{ours}.{kind}"), found.map(|layer| layer.part)))
}

/// Our name of a tensor of tower or projector; those of the tower begin with `prefix`.
pub(super) fn to_vision(prefix: &str, name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((ours, theirs)) = OTHERS.iter().find(|(_, theirs)| *theirs == stem) {
        return Some(format!("{}{ours}.{kind}", if theirs.starts_with("mm.") { "" } else { prefix }));
    }
    let (layer, within) = stem.strip_prefix("v.blk.")?.split_once('.')?;
    let (ours, _) = TOWER.iter().find(|(_, theirs)| *theirs == within)?;
    Some(format!("{prefix}encoder.layers.{layer}.{ours}.{kind}"))
}

/// llama.cpp's name of a tensor of the tower, without the tower's prefix, or of the projector.
pub(super) fn of_vision(name: &str) -> Option<String> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((_, theirs)) = OTHERS.iter().find(|(ours, _)| *ours == stem) {
        return Some(format!("{theirs}.{kind}"));
    }
    let (layer, within) = stem.strip_prefix("encoder.layers.")?.split_once('.')?;
    let (_, theirs) = TOWER.iter().find(|(ours, _)| *ours == within)?;
    Some(format!("v.blk.{layer}.{theirs}.{kind}"))
}
