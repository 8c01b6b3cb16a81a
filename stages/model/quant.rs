//! A merged model in 4 bits: `q4f16_1` of MLC. Linear and embedding matrices are quantized; the patch
//! convolution, norms, biases and positions stay in f16.

use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use crate::{
    config::ConfigFile,
    error::{ModelError, Result},
    save::{self, DType, NamedTensor},
    tensor::quantize_q4f16,
    weights::write::{Encoded, write_encoded},
};

/// What quantization gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Weights in all.
    pub weights: u64,
}

/// Reads the merged model in `from` and writes it in `q4f16_1` to `to`, with a `config.json` that says so.
pub fn write(from: &Path, to: &Path) -> Result<Quantized> {
    let path = from.join("config.json");
    let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
    let mut config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::file(&path, format!("this is not JSON: {error}")))?;
    if !ConfigFile::read(from)?.is_imp() || !config["quantization_config"].is_null() {
        return Err(ModelError::file(&path, "only a merged model that is not yet quantized can be quantized"));
    }
    let model = crate::Imp::load(from)?;
    let tensors = save::all_tensors(&model);
    let weights = tensors.iter().map(|tensor| tensor.count() as u64).sum();
    let encoded: Vec<Encoded<'_>> = tensors.into_iter().flat_map(quantize).collect();
    let bytes = encoded.iter().map(|tensor| tensor.size() as u64).sum();
    config["quantization_config"] = json!({ "quant_method": "q4f16_1", "bits": 4, "group_size": 32 });
    save::write_json(&to.join("config.json"), &config)?;
    write_encoded(&to.join("model.safetensors"), encoded)?;
    Ok(Quantized { bytes, weights })
}

fn quantize(tensor: NamedTensor<'_>) -> Vec<Encoded<'_>> {
    let (rows, cols, stem) = match (tensor.shape.as_slice(), tensor.name.strip_suffix(".weight")) {
        ([rows, cols], Some(stem)) if !stem.ends_with("position_embedding") => (*rows, *cols, stem.to_string()),
        _ => return vec![Encoded::floats(tensor, DType::F16)],
    };
    let groups = cols.div_ceil(32);
    let tensor = std::rc::Rc::new(tensor);
    let again = std::rc::Rc::clone(&tensor);
    // Quantized once for each of the two: cheaper than keeping a whole model's values until both are written.
    vec![
        Encoded {
            name: format!("{stem}.q_weight"),
            dtype: Dtype::U32,
            shape: vec![rows, groups * 4],
            bytes: Box::new(move || quantize_q4f16(&tensor.values(), cols).0),
        },
        Encoded {
            name: format!("{stem}.q_scale"),
            dtype: Dtype::F16,
            shape: vec![rows, groups],
            bytes: Box::new(move || quantize_q4f16(&again.values(), cols).1),
        },
    ]
}
