//! Converts language models from GGUF, the file format of llama.cpp, to Hugging Face folders, which everything else here
//! reads: Llama's architecture, with the tokenizer in the file. Independent of the encodings of weights.
//! Format: ggml's `docs/gguf.md`; names and the order of rotary dimensions: llama.cpp's `convert_hf_to_gguf.py`.

mod reader;
mod tokenizer;

use std::path::Path;

use crate::{
    config::LanguageConfig,
    encoding::Encoding,
    error::{ModelError, Result},
    language::{Family, Part},
    weights::{NamedTensor, write_json, write_tensors},
};
use reader::{Gguf, Tensor};

/// Writes the model in `file` as `config.json`, `model.safetensors` (f16) and `tokenizer.json`.
///
/// # Errors
/// If `file` is not a whole GGUF file, its architecture, tokenizer or encoding is not supported, or `folder` can't be written.
pub fn convert(file: &Path, folder: &Path) -> Result<()> {
    let gguf = Gguf::open(file)?;
    let config = config(&gguf)?;
    let tensors = gguf.tensors.iter().map(|tensor| named(&gguf, tensor, &config)).collect::<Result<Vec<_>>>()?;
    write_json(&folder.join("config.json"), &config.to_json())?;
    write_json(&folder.join("tokenizer.json"), &tokenizer::tokenizer_json(&gguf)?)?;
    write_tensors(&folder.join("model.safetensors"), tensors, Encoding::F16)
}

/// The sizes of the model in `file`.
///
/// # Errors
/// If `file` is not a whole GGUF file, or its architecture is not supported.
pub fn language_config(file: &Path) -> Result<LanguageConfig> {
    config(&Gguf::open(file)?)
}

fn config(gguf: &Gguf) -> Result<LanguageConfig> {
    let architecture = gguf.text("general.architecture")?;
    if architecture != "llama" {
        let message = format!("the architecture `{architecture}` is not supported in GGUF files (supported: llama)");
        return Err(ModelError::file(&gguf.path, message));
    }
    let number = |key: &str| gguf.number(&format!("llama.{key}"));
    let (hidden, heads) = (number("embedding_length")?, number("attention.head_count")?);
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(ModelError::file(&gguf.path, "llama.embedding_length must be a multiple of attention.head_count"));
    }
    let id = |key: &str| gguf.number(&format!("tokenizer.ggml.{key}_token_id")).ok().map(|id| id as u32);
    Ok(LanguageConfig {
        intermediate_size: number("feed_forward_length")?,
        num_key_value_heads: number("attention.head_count_kv").unwrap_or(heads),
        rope_theta: gguf.float("llama.rope.freq_base").unwrap_or(10_000.0),
        norm_eps: f64::from(gguf.float("llama.attention.layer_norm_rms_epsilon")? as f32),
        tie_word_embeddings: !gguf.tensors.iter().any(|tensor| tensor.name == "output.weight"),
        max_position_embeddings: number("context_length")?,
        bos_token_id: id("bos"),
        eos_token_id: id("eos").into_iter().collect(),
        ..LanguageConfig::new(Family::Llama, gguf.tokens()?.len(), hidden, number("block_count")?, heads)
    })
}

/// What a name stands for.
enum Meaning {
    /// This name at Hugging Face.
    Named(&'static str),
    /// A linear layer, whose name is the family's.
    Linear(Part),
}

/// Names in GGUF, without `blk.N.` and `.weight`.
const NAMES: [(&str, Meaning); 12] = [
    ("token_embd", Meaning::Named("model.embed_tokens")),
    ("output_norm", Meaning::Named("model.norm")),
    ("output", Meaning::Linear(Part::LmHead)),
    ("attn_norm", Meaning::Named("input_layernorm")),
    ("ffn_norm", Meaning::Named("post_attention_layernorm")),
    ("attn_q", Meaning::Linear(Part::Q)),
    ("attn_k", Meaning::Linear(Part::K)),
    ("attn_v", Meaning::Linear(Part::V)),
    ("attn_output", Meaning::Linear(Part::O)),
    ("ffn_gate", Meaning::Linear(Part::Gate)),
    ("ffn_up", Meaning::Linear(Part::Up)),
    ("ffn_down", Meaning::Linear(Part::Down)),
];

fn named<'a>(gguf: &'a Gguf, tensor: &'a Tensor, config: &LanguageConfig) -> Result<NamedTensor<'a>> {
    let unknown = || ModelError::Extra { file: gguf.path.clone(), tensor: tensor.name.clone() };
    let stem = tensor.name.strip_suffix(".weight").ok_or_else(unknown)?;
    let (layer, part) = match stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, part)) => (Some(layer), part),
        None => (None, stem),
    };
    let (_, meaning) = NAMES.iter().find(|(theirs, _)| *theirs == part).ok_or_else(unknown)?;
    let name = match meaning {
        Meaning::Named(name) => name,
        Meaning::Linear(part) => config.family.layer(*part).ok_or_else(unknown)?.name,
    };
    let name = layer.map_or(format!("{name}.weight"), |layer| format!("model.layers.{layer}.{name}.weight"));
    let heads = match meaning {
        Meaning::Linear(Part::Q) => Some(config.num_attention_heads),
        Meaning::Linear(Part::K) => Some(config.num_key_value_heads),
        Meaning::Linear(_) | Meaning::Named(_) => None,
    };
    Ok(NamedTensor::new(name, tensor.shape.clone(), move || {
        let mut values = vec![0.0; tensor.shape.iter().product()];
        tensor.encoding.widen(gguf.bytes(tensor), &mut values);
        heads.map_or_else(|| values.clone(), |heads| halves(&values, &tensor.shape, heads)).into()
    }))
}

/// llama.cpp rotates neighbouring dimensions of a head, the original dimensions half a head apart: its rows of q and k
/// are interleaved, and are put back here.
fn halves(values: &[f32], shape: &[usize], heads: usize) -> Vec<f32> {
    let (rows, width) = (shape[0], values.len() / shape[0].max(1));
    let head = (rows / heads.max(1)).max(1);
    let row = |row: usize| {
        let (start, index) = (row / head * head, row % head);
        let from = start + if index < head / 2 { 2 * index } else { 2 * (index - head / 2) + 1 };
        &values[from * width..(from + 1) * width]
    };
    (0..rows).flat_map(row).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::halves;

    #[test]
    fn interleaved_rows_become_halves() {
        // Two heads of four rows; each row is two wide.
        let values: Vec<f32> = (0..8).flat_map(|row| [row as f32, row as f32 + 0.5]).collect();
        let rows: Vec<f32> = halves(&values, &[8, 2], 2).chunks(2).map(|row| row[0]).collect();
        assert_eq!(rows, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
    }
}
