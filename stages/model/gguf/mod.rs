//! Converts language models from GGUF, llama.cpp's file format, to Hugging Face folders, which the rest of the crate
//! reads. Supports the Llama architecture and the tokenizer inside the file. Independent of how weights are encoded.
//! Sources: ggml's `docs/gguf.md` for the format; llama.cpp's `convert_hf_to_gguf.py` for tensor names and the order of
//! rotary dimensions.

mod load;
mod names;
mod reader;
mod rotary;
mod setting;
mod settings;
mod tokenizer;
mod write;

use std::path::Path;

use crate::{
    config::LanguageConfig,
    encoding::Encoding,
    error::{ModelError, Result},
    family::{Family, Part},
    weights::{NamedTensor, write_json, write_tensors},
};
pub(crate) use load::{check, is_here, open};
use reader::{Gguf, Tensor};
pub use tokenizer::beginning;
pub use write::{MMPROJ, MODEL, Mixture, Speech, Written, unfit, write};

/// Writes the model in `file` as `config.json`, `model.safetensors` (f16) and `tokenizer.json`. Returns the
/// settings in `file` that are not read and may change the network.
///
/// # Errors
/// If `file` is not a complete GGUF file, its architecture, tokenizer or encoding is not supported, or `folder` can't
/// be written.
pub fn convert(file: &Path, folder: &Path) -> Result<Vec<String>> {
    let gguf = Gguf::open(file)?;
    let config = config(&gguf)?;
    let weights = gguf.tensors.iter().filter(|tensor| !rotary::has_divisors(tensor));
    let tensors = weights.map(|tensor| named(&gguf, tensor, &config)).collect::<Result<Vec<_>>>()?;
    write_json(&folder.join("config.json"), &config.to_json())?;
    write_json(&folder.join("tokenizer.json"), &tokenizer::tokenizer_json(&gguf)?)?;
    write_tensors(&folder.join("model.safetensors"), tensors, Encoding::F16)?;
    Ok(settings::unknown(&gguf).into_iter().chain(tokenizer::assumed(&gguf)).collect())
}

/// Reads the configuration of the model in `file`.
///
/// # Errors
/// If `file` is not a complete GGUF file, or its architecture is not supported.
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
    settings::check(gguf, hidden / heads)?;
    let id = |key: &str| gguf.number(&format!("tokenizer.ggml.{key}_token_id")).ok().map(|id| id as u32);
    let mut config = LanguageConfig {
        intermediate_size: number("feed_forward_length")?,
        num_key_value_heads: gguf.optional("llama.attention.head_count_kv", Gguf::number)?.unwrap_or(heads),
        rope_theta: gguf.optional("llama.rope.freq_base", Gguf::float)?.unwrap_or(10_000.0),
        norm_eps: f64::from(gguf.float("llama.attention.layer_norm_rms_epsilon")? as f32),
        tie_word_embeddings: !gguf.tensors.iter().any(|tensor| tensor.name == "output.weight"),
        max_position_embeddings: number("context_length")?,
        bos_token_id: id("bos"),
        eos_token_id: id("eos").into_iter().collect(),
        ..LanguageConfig::new(Family::Llama, gguf.tokens()?.len(), hidden, number("block_count")?, heads)
    };
    config.rope_scaling = rotary::read(gguf, &config)?;
    Ok(config)
}

fn named<'a>(gguf: &'a Gguf, tensor: &'a Tensor, config: &LanguageConfig) -> Result<NamedTensor<'a>> {
    let unknown = || ModelError::Extra { file: gguf.path.clone(), tensor: tensor.name.clone() };
    let (name, part) = names::to_language(config.family, &tensor.name).ok_or_else(unknown)?;
    let heads = interleaved_heads(config, part);
    if let Some(heads) = heads {
        check_heads(gguf, tensor, heads)?;
    }
    let (encoding, bytes) = (tensor.encoding, gguf.bytes(tensor));
    let [rows, width] = tensor.shape[..] else {
        return Ok(NamedTensor::new(name, tensor.shape.clone(), move || {
            let mut values = vec![0.0; tensor.shape.iter().product()];
            encoding.widen(bytes, &mut values);
            values.into()
        }));
    };
    let row_bytes = bytes.len() / rows.max(1);
    Ok(NamedTensor::by_rows(name, rows, width, move |wanted| {
        let mut values = vec![0.0; wanted.len() * width];
        for (row, to) in wanted.zip(values.chunks_mut(width.max(1))) {
            let from = heads.map_or(row, |heads| deinterleaved_row(row, rows, heads));
            encoding.widen(&bytes[from * row_bytes..(from + 1) * row_bytes], to);
        }
        values.into()
    }))
}

/// The heads of a q or k weight, if its rows are interleaved in GGUF files: those of a Llama are.
fn interleaved_heads(config: &LanguageConfig, part: Option<Part>) -> Option<usize> {
    match (config.family, part) {
        (Family::Llama, Some(Part::Q)) => Some(config.num_attention_heads),
        (Family::Llama, Some(Part::K)) => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// Checks that the rows of a q or k weight are heads of an even width: [`deinterleaved_row`] relies on it.
fn check_heads(gguf: &Gguf, tensor: &Tensor, heads: usize) -> Result<()> {
    match tensor.shape[..] {
        [rows, _] if heads > 0 && rows.is_multiple_of(2 * heads) => Ok(()),
        _ => {
            let Tensor { name, shape, .. } = tensor;
            let message = format!("the shape {shape:?} of `{name}` does not fit {heads} heads");
            Err(ModelError::file(&gguf.path, message))
        }
    }
}

/// The row in a GGUF file that is row `row` of a q or k weight. llama.cpp rotates adjacent dimensions of a head, Hugging Face's code
/// dimensions half a head apart, so the rows of each head are interleaved in GGUF.
fn deinterleaved_row(row: usize, rows: usize, heads: usize) -> usize {
    let head = (rows / heads).max(1);
    let (start, index) = (row / head * head, row % head);
    start + if index < head / 2 { 2 * index } else { 2 * (index - head / 2) + 1 }
}

#[cfg(test)]
mod tests {
    use super::deinterleaved_row;

    #[test]
    fn interleaved_rows_get_their_original_order() {
        // Two heads of four rows.
        let rows: Vec<usize> = (0..8).map(|row| deinterleaved_row(row, 8, 2)).collect();
        assert_eq!(rows, [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
