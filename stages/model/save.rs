//! Writing models in the layouts that others read: safetensors with sorted names, peft adapters, `config.json`.
//! The same model gives the same bytes.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use half::f16;
use safetensors::{Dtype, tensor::TensorView};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::{PhiConfig, merged_json},
    error::{ModelError, Result},
    imp::Imp,
    layers::LoraSettings,
};

/// A tensor to write: name, shape, values.
pub type NamedTensor = (String, Vec<usize>, Vec<f32>);

/// How values are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// Half precision, as the published checkpoints.
    #[default]
    F16,
}

/// A tensor as bytes.
pub(crate) struct Raw {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

impl Raw {
    pub(crate) fn new((name, shape, values): NamedTensor, dtype: DType) -> Self {
        match dtype {
            DType::F32 => {
                Self { name, shape, dtype: Dtype::F32, bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect() }
            }
            DType::F16 => {
                let bytes = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
                Self { name, shape, dtype: Dtype::F16, bytes }
            }
        }
    }
}

/// Writes a safetensors file.
pub fn write_tensors(path: &Path, tensors: Vec<NamedTensor>, dtype: DType) -> Result<()> {
    let raw: Vec<Raw> = tensors.into_iter().map(|tensor| Raw::new(tensor, dtype)).collect();
    write_raw(path, &raw)
}

pub(crate) fn write_raw(path: &Path, tensors: &[Raw]) -> Result<()> {
    let views = tensors
        .iter()
        .map(|raw| {
            TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes)
                .map(|view| (raw.name.clone(), view))
                .map_err(|error| ModelError::file(path, error.to_string()))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = [("format".to_string(), "pt".to_string())].into();
    let bytes =
        safetensors::serialize(views, Some(metadata)).map_err(|error| ModelError::file(path, error.to_string()))?;
    write_whole(path, &bytes)
}

/// Writes a JSON file for people.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_whole(path, format!("{value:#}\n").as_bytes())
}

/// Writes the whole file or none of it: to a name beside it, flushed, then renamed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    std::fs::File::create(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(ModelError::io(path))
}

/// Writes the projector as `mm_projector.safetensors`, under LLaVA's names.
pub fn projector(model: &Imp, folder: &Path) -> Result<()> {
    write_tensors(&folder.join("mm_projector.safetensors"), model.projector.tensors(), DType::F32)
}

/// Writes the language model as a Hugging Face folder, in f32, adapters merged.
pub fn language_model(model: &Imp, folder: &Path) -> Result<()> {
    write_json(&folder.join("config.json"), &model.llm.config.to_json())?;
    write_tensors(&folder.join("model.safetensors"), model.llm.tensors(), DType::F32)
}

/// Writes the used part of the vision tower as a SigLIP folder, in f32.
pub fn vision(model: &Imp, folder: &Path) -> Result<()> {
    write_json(&folder.join("config.json"), &model.vision.config.to_json())?;
    write_tensors(&folder.join("model.safetensors"), model.vision.tensors("vision_model."), DType::F32)
}

/// Writes the adapters in peft's layout: `adapter_config.json` and `adapter_model.safetensors`.
pub fn adapter(model: &mut Imp, settings: &LoraSettings, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let mut tensors = Vec::new();
    model.llm.each_linear(&mut |linear| {
        if let Some(lora) = &linear.lora {
            for (part, mat) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                let name = format!("base_model.model.{}.{part}.weight", linear.name);
                tensors.push((name, vec![mat.rows(), mat.cols()], mat.values().to_vec()));
            }
        }
    });
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": Value::Null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": Value::Null,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": model.llm.linear_names(),
    });
    write_json(&folder.join("adapter_config.json"), &config)?;
    write_tensors(&folder.join("adapter_model.safetensors"), tensors, DType::F32)
}

/// The `config.json` of a folder whose parts lie apart: `llm/`, `vision/`, `mm_projector.safetensors`, and
/// `adapter/` if there is one.
pub fn split_config(model: &Imp, folder: &Path) -> Result<()> {
    let mut value = serde_json::to_value(&model.config).unwrap_or_default();
    value["model_type"] = json!("imp-split");
    write_json(&folder.join("config.json"), &value)
}

/// Writes one Hugging Face folder: language model with adapters merged, projector, and the used part of the
/// vision tower under the names of the training code.
pub fn merged(model: &Imp, dtype: DType, folder: &Path) -> Result<()> {
    let phi: &PhiConfig = &model.llm.config;
    write_json(&folder.join("config.json"), &merged_json(phi, &model.vision.config, &model.config))?;
    let mut tensors = model.llm.tensors();
    tensors.extend(model.projector.tensors());
    tensors.extend(model.vision.tensors("model.vision_tower.vision_tower.vision_model."));
    write_tensors(&folder.join("model.safetensors"), tensors, dtype)
}
