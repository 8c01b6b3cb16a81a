//! Writes models as Hugging Face folders, and in the split layout of training stages. The same model gives the same bytes.
//! Adapters are in [`crate::peft`].

use std::path::Path;

use serde_json::json;

use crate::{
    config::merged_json,
    encoding::Encoding,
    error::Result,
    imp::Imp,
    weights::{NamedTensor, write_json, write_tensors},
};

/// Prefix of the vision tower in a merged model: the name of the training code.
pub(crate) const VISION_PREFIX: &str = "model.vision_tower.vision_tower.vision_model.";

/// Writes the projector as `mm_projector.safetensors`, under LLaVA's names.
///
/// # Errors
/// If `folder` can't be written.
pub fn projector(model: &Imp, folder: &Path) -> Result<()> {
    write_tensors(&folder.join("mm_projector.safetensors"), model.projector.tensors(), Encoding::F32)
}

/// Writes the language model as a Hugging Face folder, in f32, adapters merged.
///
/// # Errors
/// If `folder` can't be written.
pub fn language_model(model: &Imp, folder: &Path) -> Result<()> {
    write_json(&folder.join("config.json"), &model.llm.merged_config().to_json())?;
    write_tensors(&folder.join("model.safetensors"), model.llm.tensors(), Encoding::F32)
}

/// Writes the used part of the vision tower as a SigLIP folder, in f32.
///
/// # Errors
/// If `folder` can't be written.
pub fn vision(model: &Imp, folder: &Path) -> Result<()> {
    write_json(&folder.join("config.json"), &model.vision.config.to_json())?;
    write_tensors(&folder.join("model.safetensors"), model.vision.tensors("vision_model."), Encoding::F32)
}

/// Writes the `config.json` of the split layout: `llm/`, `vision/`, `mm_projector.safetensors`, and `adapter/` if there is
/// one.
///
/// # Errors
/// If `folder` can't be written.
pub fn split_config(model: &Imp, folder: &Path) -> Result<()> {
    let mut value = serde_json::to_value(&model.config).unwrap_or_default();
    value["model_type"] = json!("imp-split");
    value["image_token_index"] = json!(crate::IMAGE_TOKEN);
    write_json(&folder.join("config.json"), &value)
}

/// Writes one Hugging Face folder: language model with adapters merged, projector, and the used part of the
/// vision tower under the names of the training code.
///
/// # Errors
/// If `folder` can't be written, or a safetensors file can't hold `encoding`.
pub fn merged(model: &Imp, encoding: Encoding, folder: &Path) -> Result<()> {
    let mut config = merged_json(&model.llm.merged_config(), &model.vision.config, &model.config);
    config["torch_dtype"] = json!(match encoding {
        Encoding::F16 => "float16",
        Encoding::Bf16 => "bfloat16",
        // Another encoding is refused below.
        _ => "float32",
    });
    write_json(&folder.join("config.json"), &config)?;
    write_tensors(&folder.join("model.safetensors"), all_tensors(model), encoding)
}

/// All tensors of a merged model.
pub(crate) fn all_tensors(model: &Imp) -> Vec<NamedTensor<'_>> {
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors(VISION_PREFIX));
    tensors
}
