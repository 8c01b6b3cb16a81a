//! A merged model in 4 bits: linear and embedding matrices in `q4f16_1`; the patch convolution, norms, biases and
//! positions in f16. Independent of the formula, which is in [`crate::encoding::q4f16`].

use std::path::Path;

use serde_json::json;

use crate::{
    config::ConfigFile,
    encoding::q4f16,
    error::{ModelError, Result},
    save::all_tensors,
    weights::{Encoded, write_encoded, write_json},
};

/// Sizes of a quantized model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Number of weights.
    pub weights: u64,
}

/// Reads the merged model in `from` and writes it in `q4f16_1` to `to`, with a `config.json` that says so.
///
/// # Errors
/// If `from` is not a merged model, is quantized already, or `to` can't be written.
pub fn write(from: &Path, to: &Path) -> Result<Quantized> {
    let path = from.join("config.json");
    let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::file(&path, format!("this is not JSON: {error}")))?;
    if !ConfigFile::read(from)?.is_imp() || !config["quantization_config"].is_null() {
        return Err(ModelError::file(&path, "only a merged model that is not yet quantized can be quantized"));
    }
    let model = crate::Imp::load(from)?;
    let tensors = all_tensors(&model);
    let weights = tensors.iter().map(|tensor| tensor.count() as u64).sum();
    let encoded: Vec<Encoded<'_>> = tensors.into_iter().flat_map(Encoded::q4f16).collect();
    let bytes = encoded.iter().map(|tensor| tensor.size() as u64).sum();
    config["quantization_config"] =
        json!({ "quant_method": q4f16::NAME, "bits": q4f16::BITS, "group_size": q4f16::GROUP_SIZE });
    write_json(&to.join("config.json"), &config)?;
    write_encoded(&to.join("model.safetensors"), encoded)?;
    Ok(Quantized { bytes, weights })
}
