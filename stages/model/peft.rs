//! LoRA adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`) with peft's tensor names.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
    language::Decoder,
    layers::{Linear, Lora, LoraSettings},
    weights::{self, NamedTensor, TensorFiles, read_json, write_json, write_tensors},
};

/// The file of an adapter's weights, of which peft writes the first, and versions before 0.5 the second.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// A larger rank means a broken file, and could overflow a product of sizes.
const LARGEST_RANK: u64 = 1 << 16;

fn tensor_name(linear: &Linear, part: &str) -> String {
    format!("base_model.model.{}.{part}.weight", linear.name)
}

/// Writes the adapters of the language model to `folder`, in f32.
///
/// # Errors
/// If `folder` can't be written.
pub fn write(llm: &Decoder, settings: &LoraSettings, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let mut tensors = Vec::new();
    for linear in llm.linears() {
        if let Some(lora) = &linear.lora {
            for (part, mat) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                tensors.push(NamedTensor::of_mat(tensor_name(linear, part), mat));
            }
        }
    }
    let adapted = llm.linears().filter(|linear| linear.lora.is_some());
    let targets: BTreeSet<&str> = adapted.map(Linear::kind).collect();
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
        "target_modules": targets,
    });
    write_json(&folder.join("adapter_config.json"), &config)?;
    write_tensors(&folder.join("adapter_model.safetensors"), tensors, Encoding::F32)
}

/// Reads adapters from `folder` and attaches them to the language model, frozen. Layers without an adapter in the files
/// are not changed.
///
/// # Errors
/// If a file can't be read, has no adapter for this model, or has a tensor that does not belong to any layer.
pub fn read(llm: &mut Decoder, folder: &Path) -> Result<LoraSettings> {
    let settings = read_settings(&folder.join("adapter_config.json"))?;
    let path = weights::either(folder, &WEIGHTS)?.unwrap_or_else(|| folder.join(WEIGHTS[0]));
    let files = TensorFiles::open_file(&path)?;
    let mut found = 0;
    for linear in llm.linears_mut() {
        let (a, b) = (tensor_name(linear, "lora_A"), tensor_name(linear, "lora_B"));
        if !files.has(&a) && !files.has(&b) {
            continue;
        }
        let (rank, outputs, inputs) = (settings.rank, linear.weight.outputs(), linear.weight.inputs());
        let a = files.mat(&a, &[rank, inputs], rank, inputs)?;
        let b = files.mat(&b, &[outputs, rank], outputs, rank)?;
        linear.lora = Some(Lora::new(a, b, &settings));
        found += 1;
    }
    if found == 0 {
        return Err(ModelError::file(&path, "it has no adapter for any linear layer of the model"));
    }
    files.finish(|_| false)?;
    Ok(settings)
}

fn read_settings(path: &Path) -> Result<LoraSettings> {
    let config = read_json(path)?;
    let wrong = |message: String| ModelError::file(path, message);
    for key in ["use_dora", "use_rslora", "fan_in_fan_out"] {
        if config.get(key).and_then(Value::as_bool) == Some(true) {
            return Err(wrong(format!("`{key}` is not supported")));
        }
    }
    if let Some(message) = unsupported(&config) {
        return Err(wrong(message));
    }
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| (1..=LARGEST_RANK).contains(rank));
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    Ok(LoraSettings {
        rank: rank.ok_or_else(|| wrong(format!("`r` must be a whole number from 1 to {LARGEST_RANK}")))? as usize,
        alpha: number("lora_alpha").ok_or_else(|| wrong("`lora_alpha` must be a number".into()))?,
        dropout: number("lora_dropout").unwrap_or(0.0),
    })
}

/// Names what of an adapter's settings would be ignored, although it changes what the adapter does.
fn unsupported(config: &Value) -> Option<String> {
    let given = |key: &str| config.get(key).filter(|value| !value.is_null());
    let is_empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(flag) => !flag,
        _ => false,
    };
    let not_empty = [
        "rank_pattern",
        "alpha_pattern",
        "modules_to_save",
        "layer_replication",
        "trainable_token_indices",
        "megatron_config",
        "lora_bias",
        "use_qalora",
        "arrow_config",
        "corda_config",
        "target_parameters",
    ];
    if let Some(key) = not_empty.into_iter().find(|key| given(key).is_some_and(|value| !is_empty(value))) {
        return Some(format!("`{key}` is not supported"));
    }
    if let Some(kind) = given("peft_type").filter(|kind| **kind != "LORA") {
        return Some(format!("`peft_type` {kind} is not supported (supported: LORA)"));
    }
    if let Some(bias) = given("bias").filter(|bias| **bias != "none") {
        return Some(format!("`bias` = {bias} is not supported: trained biases would be left out"));
    }
    // The other ways of initializing change the base model, too, which such an adapter then needs.
    let initial = given("init_lora_weights").and_then(Value::as_str);
    let initial = initial.filter(|initial| !["true", "false", "gaussian", "eva", "orthogonal"].contains(initial));
    initial.map(|initial| format!("`init_lora_weights` = `{initial}` is not supported: it changes the base model, too"))
}
