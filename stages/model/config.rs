//! The `config.json` files of Hugging Face: Phi, SigLIP, and Imp's own keys. Old and new names are read; what
//! is written uses the published (old) ones.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    error::{ModelError, Result},
    tensor::Activation,
};

/// A Phi language model (Phi-1.5, Phi-2).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhiConfig {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Share of each head's dimensions that is rotated.
    pub partial_rotary_factor: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// The longest sequence.
    pub max_position_embeddings: usize,
    /// Nonlinearity of the MLP.
    pub hidden_act: Activation,
    /// The token that ends a text.
    pub eos_token_id: u32,
}

impl PhiConfig {
    /// Width of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Reads the keys of Phi out of `config.json`'s content.
    fn read(keys: &Keys<'_>) -> Result<Self> {
        let heads = keys.number("num_attention_heads", None)?;
        let config = Self {
            vocab_size: keys.number("vocab_size", None)?,
            hidden_size: keys.number("hidden_size", None)?,
            intermediate_size: keys.number("intermediate_size", None)?,
            num_hidden_layers: keys.number("num_hidden_layers", None)?,
            num_attention_heads: heads,
            num_key_value_heads: keys.number("num_key_value_heads", Some(heads))?,
            partial_rotary_factor: keys.rotary("partial_rotary_factor", 0.5)?,
            rope_theta: keys.rotary("rope_theta", 10_000.0)?,
            layer_norm_eps: keys.float("layer_norm_eps", 1e-5)?,
            max_position_embeddings: keys.number("max_position_embeddings", Some(2048))?,
            hidden_act: keys.activation("hidden_act", Activation::GeluTanh)?,
            eos_token_id: keys.number("eos_token_id", Some(50256))? as u32,
        };
        keys.positive(&[
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", heads),
            ("num_key_value_heads", config.num_key_value_heads),
        ])?;
        if !config.hidden_size.is_multiple_of(heads) || !heads.is_multiple_of(config.num_key_value_heads) {
            return Err(
                keys.wrong("hidden_size must be a multiple of num_attention_heads, and that of num_key_value_heads")
            );
        }
        if !(0.0..=1.0).contains(&config.partial_rotary_factor) || !config.rotary_dims().is_multiple_of(2) {
            return Err(keys.wrong("partial_rotary_factor must be a share that gives an even number of dimensions"));
        }
        Ok(config)
    }

    /// Dimensions of each head that are rotated.
    pub fn rotary_dims(&self) -> usize {
        // A share that was computed from a number of dimensions may fall just short of it.
        (self.partial_rotary_factor * self.head_dim() as f64 + 1e-6) as usize
    }

    /// As a `config.json`.
    pub fn to_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["model_type"] = json!("phi");
        value["architectures"] = json!(["PhiForCausalLM"]);
        value["tie_word_embeddings"] = json!(false);
        value["bos_token_id"] = json!(self.eos_token_id);
        value
    }
}

/// A SigLIP vision tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiglipConfig {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Blocks in the checkpoint's configuration; not all of them run.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Pixels in a row of the (square) image.
    pub image_size: usize,
    /// Pixels in a row of a patch.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Nonlinearity of the MLP.
    pub hidden_act: Activation,
}

impl SiglipConfig {
    /// Patches in a row of the image; pixels that fill no patch are dropped.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Features of an image.
    pub fn patches(&self) -> usize {
        self.grid() * self.grid()
    }

    /// Reads the keys of a vision tower. Missing ones have the values of transformers' `SiglipVisionConfig`.
    fn read(keys: &Keys<'_>) -> Result<Self> {
        let config = Self {
            hidden_size: keys.number("hidden_size", Some(768))?,
            intermediate_size: keys.number("intermediate_size", Some(3072))?,
            num_hidden_layers: keys.number("num_hidden_layers", Some(12))?,
            num_attention_heads: keys.number("num_attention_heads", Some(12))?,
            image_size: keys.number("image_size", Some(224))?,
            patch_size: keys.number("patch_size", Some(16))?,
            layer_norm_eps: keys.float("layer_norm_eps", 1e-6)?,
            hidden_act: keys.activation("hidden_act", Activation::GeluTanh)?,
        };
        keys.positive(&[
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.num_attention_heads),
            ("patch_size", config.patch_size),
        ])?;
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) || config.patches() == 0 {
            return Err(
                keys.wrong("hidden_size must be a multiple of num_attention_heads, and image_size at least patch_size")
            );
        }
        Ok(config)
    }

    /// As the `config.json` of a full SigLIP.
    pub fn to_json(&self) -> Value {
        json!({ "model_type": "siglip", "architectures": ["SiglipModel"], "vision_config": self.vision_json() })
    }

    fn vision_json(&self) -> Value {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["model_type"] = json!("siglip_vision_model");
        value
    }
}

/// What joins the two towers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpConfig {
    /// `mlp2x_gelu`, `mlp{N}x_gelu`, `linear` or `identity`.
    pub mm_projector_type: String,
    /// Which of the tower's hidden states are the features; -2 is the last but one.
    pub mm_vision_select_layer: i64,
    /// How an image is made square: `square`, `pad` or `crop`.
    pub image_aspect_ratio: String,
    /// The context: longer sequences are cut after the splice.
    pub tokenizer_model_max_length: usize,
}

impl Default for ImpConfig {
    fn default() -> Self {
        Self {
            mm_projector_type: "mlp2x_gelu".into(),
            mm_vision_select_layer: -2,
            image_aspect_ratio: "square".into(),
            tokenizer_model_max_length: 3072,
        }
    }
}

impl ImpConfig {
    fn read(keys: &Keys<'_>) -> Result<Self> {
        let default = Self::default();
        let text =
            |name: &str, default: String| keys.get(name).and_then(Value::as_str).map_or(default, ToString::to_string);
        Ok(Self {
            mm_projector_type: text("mm_projector_type", default.mm_projector_type),
            mm_vision_select_layer: keys.get("mm_vision_select_layer").and_then(Value::as_i64).unwrap_or(-2),
            image_aspect_ratio: text("image_aspect_ratio", default.image_aspect_ratio),
            tokenizer_model_max_length: keys
                .number("tokenizer_model_max_length", Some(default.tokenizer_model_max_length))?,
        })
    }
}

/// The content of a model folder's `config.json`.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    keys: Map<String, Value>,
    path: std::path::PathBuf,
}

impl ConfigFile {
    /// Reads `folder/config.json`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = std::fs::read(&path).map_err(ModelError::io(&path))?;
        match serde_json::from_slice(&text) {
            Ok(Value::Object(keys)) => Ok(Self { keys: with_usual_names(keys), path }),
            Ok(_) => Err(ModelError::file(&path, "this is not a JSON object")),
            Err(error) => Err(ModelError::file(&path, format!("this is not JSON: {error}"))),
        }
    }

    /// `model_type`, or an empty text.
    pub fn model_type(&self) -> &str {
        self.keys.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// `quantization_config.quant_method`, if the weights are quantized.
    pub fn quantization(&self) -> Option<&str> {
        self.keys.get("quantization_config")?.get("quant_method")?.as_str()
    }

    /// The language model.
    pub fn phi(&self) -> Result<PhiConfig> {
        PhiConfig::read(&self.reader(&self.keys))
    }

    /// The vision tower: of a SigLIP folder, or of an Imp that carries it along.
    pub fn siglip(&self) -> Result<SiglipConfig> {
        let nested = ["vision_tower_config", "vision_config"].iter().find_map(|name| self.keys.get(*name)?.as_object());
        SiglipConfig::read(&self.reader(nested.unwrap_or(&self.keys)))
    }

    /// What joins them.
    pub fn imp(&self) -> Result<ImpConfig> {
        ImpConfig::read(&self.reader(&self.keys))
    }

    fn reader<'a>(&'a self, keys: &'a Map<String, Value>) -> Keys<'a> {
        Keys { keys, path: &self.path }
    }
}

/// Adds the usual keys to a file that has those of Microsoft's own Phi code, as Imp's first releases do.
fn with_usual_names(mut keys: Map<String, Value>) -> Map<String, Value> {
    const NAMES: [(&str, &str); 8] = [
        ("n_embd", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_head_kv", "num_key_value_heads"),
        ("n_inner", "intermediate_size"),
        ("n_positions", "max_position_embeddings"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("activation_function", "hidden_act"),
    ];
    let Some(width) = keys.get("n_embd").and_then(Value::as_u64) else { return keys };
    for (theirs, usual) in NAMES {
        if let Some(value) = keys.get(theirs).filter(|value| !value.is_null()).cloned() {
            keys.entry(usual).or_insert(value);
        }
    }
    keys.entry("intermediate_size").or_insert(json!(width.saturating_mul(4)));
    let number = |key: &str| keys.get(key).and_then(Value::as_f64);
    if let (Some(dims), Some(heads)) = (number("rotary_dim"), number("n_head")) {
        keys.entry("partial_rotary_factor").or_insert(json!(dims * heads / width as f64));
    }
    keys
}

/// The `config.json` of a merged Imp.
pub fn merged_json(phi: &PhiConfig, siglip: &SiglipConfig, imp: &ImpConfig) -> Value {
    let mut value = phi.to_json();
    if let (Value::Object(to), Ok(Value::Object(from))) = (&mut value, serde_json::to_value(imp)) {
        to.extend(from);
    }
    value["model_type"] = json!("imp");
    value["architectures"] = json!(["ImpForCausalLM"]);
    value["image_token_index"] = json!(crate::IMAGE_TOKEN);
    value["mm_hidden_size"] = json!(siglip.hidden_size);
    value["vision_tower_config"] = siglip.vision_json();
    value
}

/// Keys of a JSON object, with errors that name the file.
struct Keys<'a> {
    keys: &'a Map<String, Value>,
    path: &'a Path,
}

impl Keys<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.keys.get(name).filter(|value| !value.is_null())
    }

    fn wrong(&self, message: impl Into<String>) -> ModelError {
        ModelError::file(self.path, message)
    }

    fn positive(&self, numbers: &[(&str, usize)]) -> Result<()> {
        match numbers.iter().find(|(_, number)| *number == 0) {
            Some((name, _)) => Err(self.wrong(format!("`{name}` must be at least 1"))),
            None => Ok(()),
        }
    }

    fn number(&self, name: &str, default: Option<usize>) -> Result<usize> {
        match (self.get(name), default) {
            // A dimension beyond this is a broken file, and would overflow what is computed from it.
            (Some(value), _) => value
                .as_u64()
                .filter(|number| *number <= 1 << 28)
                .map(|number| number as usize)
                .ok_or_else(|| self.wrong(format!("`{name}` must be a whole number, not {value}"))),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.wrong(format!("the key `{name}` is missing"))),
        }
    }

    fn float(&self, name: &str, default: f64) -> Result<f64> {
        self.get(name).map_or(Ok(default), |value| {
            value.as_f64().ok_or_else(|| self.wrong(format!("`{name}` must be a number, not {value}")))
        })
    }

    /// Newer files keep these under `rope_parameters`.
    fn rotary(&self, name: &str, default: f64) -> Result<f64> {
        match self.get("rope_parameters").and_then(Value::as_object) {
            Some(nested) if nested.contains_key(name) => Keys { keys: nested, path: self.path }.float(name, default),
            _ => self.float(name, default),
        }
    }

    fn activation(&self, name: &str, default: Activation) -> Result<Activation> {
        self.get(name).map_or(Ok(default), |value| {
            serde_json::from_value(value.clone()).map_err(|_| self.wrong(format!("`{name}`: {value} is not supported")))
        })
    }
}
