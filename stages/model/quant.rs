//! A merged model in 4 bits: `q4f16_1` of MLC. Linear and embedding matrices are quantized; the patch
//! convolution, norms, biases and positions stay in f16.

use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use crate::{
    error::{ModelError, Result},
    save::{self, DType, NamedTensor, Raw},
    tensor::quantize_q4f16,
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
    if config["model_type"] != "imp" || !config["quantization_config"].is_null() {
        return Err(ModelError::file(&path, "only a merged model that is not yet quantized can be quantized"));
    }
    let model = crate::Imp::load(from)?;
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors("model.vision_tower.vision_tower.vision_model."));
    let weights = tensors.iter().map(|(_, _, values)| values.len() as u64).sum();
    let raw: Vec<Raw> = tensors.into_iter().flat_map(quantize).collect();
    let bytes = raw.iter().map(|raw| raw.bytes.len() as u64).sum();
    config["quantization_config"] = json!({ "quant_method": "q4f16_1", "bits": 4, "group_size": 32 });
    save::write_json(&to.join("config.json"), &config)?;
    save::write_raw(&to.join("model.safetensors"), &raw)?;
    Ok(Quantized { bytes, weights })
}

fn quantize((name, shape, values): NamedTensor) -> Vec<Raw> {
    match (shape.as_slice(), name.strip_suffix(".weight")) {
        ([rows, cols], Some(stem)) if !stem.ends_with("position_embedding") => {
            let (rows, groups) = (*rows, cols.div_ceil(32));
            let (levels, scales) = quantize_q4f16(&values, *cols);
            vec![
                Raw {
                    name: format!("{stem}.q_weight"),
                    dtype: Dtype::U32,
                    shape: vec![rows, groups * 4],
                    bytes: levels,
                },
                Raw { name: format!("{stem}.q_scale"), dtype: Dtype::F16, shape: vec![rows, groups], bytes: scales },
            ]
        }
        _ => vec![Raw::new((name, shape, values), DType::F16)],
    }
}
