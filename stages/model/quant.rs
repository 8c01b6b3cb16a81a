//! Quantizes a merged model to 4 bits: weights of linear and embedding layers in `q4f16_1`; patch convolution, norms,
//! biases and position embedding in f16. Independent of the formula, which is in [`crate::encoding::q4f16`].

use std::path::Path;

use crate::{
    config::{ConfigFile, ModelKind},
    encoding::q4f16,
    error::{ModelError, Result},
    gguf,
    layers::Importance,
    mlc,
    save::all_tensors,
    weights::{Encoded, read_json, write_json, write_sharded},
};

/// The size of a quantized model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// Size of all tensors in bytes.
    pub bytes: u64,
    /// Number of parameters.
    pub weights: u64,
}

/// Refuses a model whose weights were rounded to few bits before: to round them again would lose more than the scheme says.
///
/// # Errors
/// If the model in `folder` is quantized, or its `config.json` can't be read.
pub fn check_not_quantized(folder: &Path) -> Result<()> {
    let path = folder.join("config.json");
    if !read_json(&path)?["quantization_config"].is_null() || gguf::is_here(folder) || mlc::is_here(folder) {
        return Err(ModelError::file(&path, "this model is quantized already: give the merged one"));
    }
    Ok(())
}

/// Whether the model in `from` is in transformers' Llava layout.
pub fn is_llava(from: &Path) -> bool {
    read_json(&from.join("config.json")).is_ok_and(|config| config["model_type"] == "llava")
}

/// Reads the merged model in `from` and writes it in `q4f16_1` to `to`, with a
/// `quantization_config` in its `config.json`. Keeps best what `importance` says that matters.
///
/// # Errors
/// If `from` is not a merged model, is already quantized, or `to` can't be written.
pub fn write(from: &Path, importance: &Importance, to: &Path) -> Result<Quantized> {
    check_not_quantized(from)?;
    let path = from.join("config.json");
    let mut config = read_json(&path)?;
    if ConfigFile::read(from)?.kind() != ModelKind::Imp {
        return Err(ModelError::file(&path, "only a merged model can be quantized"));
    }
    if is_llava(from) {
        let message = "a model in transformers' Llava layout can't be quantized: merge it with `format = \"imp\"`";
        return Err(ModelError::file(&path, message));
    }
    let model = crate::Imp::load(from)?;
    let tensors = importance.noted(all_tensors(&model));
    let weights = tensors.iter().map(|tensor| tensor.count() as u64).sum();
    let encoded: Vec<Encoded<'_>> = tensors.into_iter().map(Encoded::q4f16).collect();
    let bytes = encoded.iter().flat_map(Encoded::parts).map(|part| part.bytes as u64).sum();
    config["quantization_config"] = q4f16::described();
    write_json(&to.join("config.json"), &config)?;
    write_sharded(to, encoded, u64::MAX)?;
    Ok(Quantized { bytes, weights })
}
