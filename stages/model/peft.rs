//! LoRA adapters in peft's format: `adapter_config.json` and `adapter_model.safetensors` (or `.bin`) with peft's tensor names.

use std::{collections::BTreeSet, path::Path};

use serde_json::{Value, json};

use crate::{
    encoding::Encoding,
    error::{ModelError, Result},
    language::Decoder,
    layers::{Linear, Lora, LoraSettings, Magnitude},
    weights::{self, NamedTensor, TensorFiles, read_json, write_json, write_tensors},
};

/// The file of an adapter's weights, of which peft writes the first, and versions before 0.5 the second.
const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// What peft puts before the names of the model's tensors.
const PREFIX: &str = "base_model.model.";
/// Modules that peft adds to an adapter without being asked.
const VOCABULARY: [&str; 2] = ["embed_tokens", "lm_head"];
/// A larger factor means a broken file, too.
const LARGEST_ALPHA: f64 = 1e9;
/// A larger rank means a broken file, and could overflow a product of sizes.
const LARGEST_RANK: u64 = 1 << 16;

fn tensor_name(linear: &Linear, part: &str) -> String {
    format!("{PREFIX}{}.{part}.weight", linear.name)
}

/// The name of DoRA's magnitudes.
fn magnitude_name(linear: &Linear) -> String {
    format!("{PREFIX}{}.lora_magnitude_vector", linear.name)
}

/// Writes the adapters of the language model to `folder`, in f32. `base` is the name of the model that they are for, or a path from
/// `folder` to it.
///
/// # Errors
/// If `folder` can't be written.
pub fn write(llm: &Decoder, settings: &LoraSettings, base: &str, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(ModelError::io(folder))?;
    let mut tensors = Vec::new();
    for linear in llm.linears() {
        if let Some(lora) = &linear.lora {
            for (part, mat) in [("lora_A", &lora.a), ("lora_B", &lora.b)] {
                tensors.push(NamedTensor::of_mat(tensor_name(linear, part), mat));
            }
            let magnitude = lora.magnitude.iter();
            tensors.extend(magnitude.map(|magnitude| NamedTensor::flat(magnitude_name(linear), &magnitude.vector)));
        }
    }
    let adapted = llm.linears().filter(|linear| linear.lora.is_some());
    let targets: BTreeSet<&str> = adapted.map(Linear::kind).collect();
    let mut config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
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
    for (key, is_set) in [("use_rslora", settings.rslora), ("use_dora", settings.dora)] {
        if is_set {
            config[key] = true.into();
        }
    }
    write_json(&folder.join("adapter_config.json"), &config)?;
    write_tensors(&folder.join("adapter_model.safetensors"), tensors, Encoding::F32)
}

/// The name of the model in `folder`, if its `config.json` has one.
pub fn base_name(folder: &Path) -> Option<String> {
    let config = read_json(&folder.join("config.json")).ok()?;
    config["_name_or_path"].as_str().filter(|name| !name.is_empty()).map(Into::into)
}

/// Reads adapters from `folder` and attaches them to the language model, frozen; modules that were trained as a whole
/// (`modules_to_save`) replace the model's. Layers without a tensor in the files are not changed. `base` is the name of the language
/// model, if known.
///
/// # Errors
/// If a file can't be read, has no adapter for this model or is for another one, or has a tensor that does not belong to any layer.
pub fn read(llm: &mut Decoder, base: Option<&str>, folder: &Path) -> Result<LoraSettings> {
    let Adapter { settings, whole } = read_settings(&folder.join("adapter_config.json"), base)?;
    let path = weights::either(folder, &WEIGHTS)?.unwrap_or_else(|| folder.join(WEIGHTS[0]));
    let files = TensorFiles::open_file(&path)?;
    let mut found = replace_modules(llm, &whole, &files)?;
    for linear in llm.linears_mut() {
        let (a, b) = (tensor_name(linear, "lora_A"), tensor_name(linear, "lora_B"));
        if !files.has(&a) && !files.has(&b) {
            continue;
        }
        let (rank, outputs, inputs) = (settings.rank, linear.weight.outputs(), linear.weight.inputs());
        let a = files.mat(&a, &[rank, inputs], rank, inputs)?;
        let b = files.mat(&b, &[outputs, rank], outputs, rank)?;
        let mut lora = Lora::new(a, b, &settings);
        if settings.dora {
            let vector = files.vector(&magnitude_name(linear), outputs)?;
            lora.magnitude = Some(Magnitude::new(&linear.weight, Some(vector)));
        }
        linear.lora = Some(lora);
        found += 1;
    }
    if found == 0 {
        return Err(ModelError::file(&path, "it has no adapter for any linear layer of the model"));
    }
    files.finish(|_| false)?;
    Ok(settings)
}

/// Replaces the modules of the model that `files` has as a whole: those named in `modules_to_save`, and embedding and output layer,
/// which peft adds where the vocabulary has grown. Returns their number.
fn replace_modules(llm: &mut Decoder, named: &[String], files: &TensorFiles) -> Result<usize> {
    let is_whole = |name: &&str| !name.contains(".lora_");
    let modules: BTreeSet<String> = files
        .names()
        .filter(is_whole)
        .filter_map(|name| Some(name.strip_prefix(PREFIX)?.rsplit_once('.')?.0.to_string()))
        .collect();
    // Versions of peft differ in whether they keep the name of the wrapper.
    let own = |module: &str| {
        let module = module.strip_suffix(".default").unwrap_or(module);
        // An adapted layer that is also given as a whole is below its adapter.
        let module = module.strip_suffix(".base_layer").unwrap_or(module);
        module.strip_suffix(".modules_to_save").unwrap_or(module).to_string()
    };
    let is_named = |module: &str, by: &str| own(module) == by || own(module).ends_with(&format!(".{by}"));
    if let Some(absent) = named.iter().find(|by| !modules.iter().any(|module| is_named(module, by))) {
        let message = format!("`modules_to_save` has `{absent}`, of which there is no tensor here");
        return Err(ModelError::file(files.path(), message));
    }
    let whole: Vec<&String> = modules
        .iter()
        .filter(|module| named.iter().map(String::as_str).chain(VOCABULARY).any(|by| is_named(module, by)))
        .collect();
    for module in &whole {
        let own = own(module);
        if !llm.replace_module(&own, files, &format!("{PREFIX}{module}"))? {
            let message = format!("`modules_to_save` has `{own}`, which is no layer of this model");
            return Err(ModelError::file(files.path(), message));
        }
    }
    Ok(whole.len())
}

/// What `adapter_config.json` says.
struct Adapter {
    settings: LoraSettings,
    /// The modules that were trained as a whole.
    whole: Vec<String>,
}

/// Whether two names of models on a hub, `owner/model`, are those of different models. Paths say nothing.
fn differ(ours: &str, theirs: &str) -> bool {
    let model = |name: &str| {
        let (owner, model) = name.split_once('/')?;
        let is_word = |text: &str| !text.trim_matches('.').is_empty() && !text.contains(['/', '\\', ':']);
        (is_word(owner) && is_word(model)).then(|| model.to_lowercase())
    };
    model(ours).zip(model(theirs)).is_some_and(|(ours, theirs)| ours != theirs)
}

fn read_settings(path: &Path, base: Option<&str>) -> Result<Adapter> {
    let config = read_json(path)?;
    let wrong = |message: String| ModelError::file(path, message);
    let theirs = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or_default();
    if let Some(ours) = base.filter(|ours| differ(ours, theirs)) {
        return Err(wrong(format!(
            "the adapter is for {theirs:?} (`base_model_name_or_path`), and the language model is {ours:?}: give the one that it was \
             trained on. If they are the same, correct the name here"
        )));
    }
    let is_set = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
    if is_set("fan_in_fan_out") {
        return Err(wrong("`fan_in_fan_out` is not supported".into()));
    }
    if let Some(message) = unsupported(&config) {
        return Err(wrong(message));
    }
    let rank = config.get("r").and_then(Value::as_u64).filter(|rank| (1..=LARGEST_RANK).contains(rank));
    let number = |key: &str| config.get(key).and_then(Value::as_f64);
    let alpha = number("lora_alpha").filter(|alpha| alpha.abs() <= LARGEST_ALPHA);
    let settings = LoraSettings {
        rank: rank.ok_or_else(|| wrong(format!("`r` must be a whole number from 1 to {LARGEST_RANK}")))? as usize,
        alpha: alpha.ok_or_else(|| wrong(format!("`lora_alpha` must be a number of at most {LARGEST_ALPHA}")))?,
        dropout: number("lora_dropout").unwrap_or(0.0),
        rslora: is_set("use_rslora"),
        dora: is_set("use_dora"),
    };
    let modules = config.get("modules_to_save").filter(|modules| !modules.is_null());
    let whole = modules.map_or(Ok(Vec::new()), |modules| serde_json::from_value(modules.clone()));
    Ok(Adapter { settings, whole: whole.map_err(|_| wrong("`modules_to_save` must be a list of names".into()))? })
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
