//! Writes models as Hugging Face folders and in the split layout of training stages. Equal models give equal bytes.
//! Adapters are written by [`crate::peft`].

use std::{collections::BTreeMap, path::Path};

use serde_json::{Value, json};

use crate::{
    config::{Encoder, SPLIT_IMP, merged_json},
    encoding::Encoding,
    error::{ModelError, Result},
    imp::Imp,
    weights::{Encoded, NamedTensor, write_json, write_sharded, write_tensors},
};

/// Prefix of the vision encoder's tensor names in a merged model, as in the reference's training code.
pub(crate) const TOWER_PREFIX: &str = "model.vision_tower.vision_tower.";
/// The same with what precedes the names of a SigLIP or CLIP in its own folder.
pub(crate) const VISION_PREFIX: &str = "model.vision_tower.vision_tower.vision_model.";

/// Prefix of this encoder's tensor names in a merged model.
pub(crate) fn vision_prefix(encoder: Encoder) -> String {
    format!("{TOWER_PREFIX}{}", encoder.description().prefix)
}

/// Writes the projector as `mm_projector.safetensors`, in f32, with LLaVA's tensor names.
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

/// Writes the used layers of the vision encoder as a folder of its own, in f32.
///
/// # Errors
/// If `folder` can't be written.
pub fn vision(model: &Imp, folder: &Path) -> Result<()> {
    write_json(&folder.join("config.json"), &model.vision.config.to_json())?;
    let prefix = model.vision.config.encoder.description().prefix;
    write_tensors(&folder.join("model.safetensors"), model.vision.tensors(prefix), Encoding::F32)
}

/// Writes the `config.json` of the split layout, whose other content is `llm/`, `vision/`, `mm_projector.safetensors`
/// and optionally `adapter/`.
///
/// # Errors
/// If `folder` can't be written.
pub fn split_config(model: &Imp, folder: &Path) -> Result<()> {
    let mut value = serde_json::to_value(&model.config).unwrap_or_default();
    value["model_type"] = json!(SPLIT_IMP);
    value["image_token_index"] = json!(crate::sample::IMAGE_TOKEN);
    write_json(&folder.join("config.json"), &value)
}

/// Writes a merged Imp as one Hugging Face folder: language model with adapters merged, projector, and the used layers
/// of the vision encoder, with the tensor names of the reference's training code, in files of at most `largest` bytes.
///
/// # Errors
/// If `folder` can't be written, or a safetensors file can't hold `encoding`.
pub fn merged(model: &Imp, encoding: Encoding, largest: u64, folder: &Path) -> Result<()> {
    config(model, dtype_name(encoding), folder)?;
    let tensors = all_tensors(model).into_iter().map(|tensor| Encoded::plain(tensor, encoding));
    write_sharded(folder, tensors.collect(), largest)
}

/// Writes the `config.json` of a merged Imp whose weights have the type `dtype`.
///
/// # Errors
/// If `folder` can't be written.
pub fn config(model: &Imp, dtype: &str, folder: &Path) -> Result<()> {
    let mut config = merged_json(&model.llm.merged_config(), &model.vision.config, &model.config);
    config["torch_dtype"] = json!(dtype);
    write_json(&folder.join("config.json"), &config)
}

/// Names published code for a merged Imp in `folder`, as transformers' `auto_map`, which maps each `Auto...` class to the code that
/// implements it.
///
/// # Errors
/// If its `config.json` can't be read or written.
pub fn name_code(auto_map: &BTreeMap<String, String>, folder: &Path) -> Result<()> {
    if auto_map.is_empty() {
        return Ok(());
    }
    let path = folder.join("config.json");
    let text = std::fs::read(&path).map_err(|source| ModelError::Io { file: path.clone(), source })?;
    let mut config: Value =
        serde_json::from_slice(&text).map_err(|error| ModelError::file(&path, error.to_string()))?;
    config["auto_map"] = json!(auto_map);
    write_json(&path, &config)
}

/// PyTorch's name of a type that a safetensors file can hold; writers refuse other encodings.
pub(crate) fn dtype_name(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::F16 => "float16",
        Encoding::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// Number of weights of a merged model.
pub fn weights(model: &Imp) -> u64 {
    all_tensors(model).iter().map(|tensor| tensor.count() as u64).sum()
}

/// All tensors of a merged model.
pub(crate) fn all_tensors(model: &Imp) -> Vec<NamedTensor<'_>> {
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors(&vision_prefix(model.vision.config.encoder)));
    tensors
}
