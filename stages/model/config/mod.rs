//! Hugging Face's `config.json`: language models, vision encoders, and Imp's additional keys. Reads the old and the new names of
//! keys, and writes the old ones, which the published models have.

mod images;
mod imp;
mod keys;
mod known;
mod language;
mod llava;
mod rope;
mod vision;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

pub use imp::{AspectRatio, ImageAspect, ImpConfig, ProjectorType, TokenizerMark};
use keys::Keys;
pub use language::LanguageConfig;
pub(crate) use llava::llava_json;
use vision::Beside;
pub use vision::VisionConfig;

use crate::error::{ModelError, Result};
pub use crate::{
    encoder::Encoder,
    family::Family,
    images::{Filter, Fit, ImageProcessor},
    rope::RopeScaling,
};

/// `model_type` of an Imp in the split layout of training stages: `llm/`, `vision/`, `mm_projector.safetensors`, and
/// optionally `adapter/`.
pub(crate) const SPLIT_IMP: &str = "imp-split";

/// The `model_type` of an encoder whose file names none.
const SIGLIP: &str = "siglip_vision_model";
/// A name, and what it stands for.
type Named = (&'static str, fn() -> VisionConfig);
/// The encoders that files of training code call by their name only.
const NAMED: [Named; 2] = [
    ("siglip-so400m-patch14-384", VisionConfig::so400m_patch14_384),
    ("clip-vit-large-patch14-336", VisionConfig::clip_vit_large_patch14_336),
];

/// What kind of model a `config.json` describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// A merged Imp: `imp`, or `imp_` and the `model_type` of its language model; `llava` in a file of transformers'.
    Imp,
    /// An Imp whose components are in separate folders and files: `imp-split`.
    SplitImp,
    /// A vision encoder, perhaps with its text encoder: `siglip`, `siglip_vision_model`, `clip`, `dinov2` and others.
    Vision,
    /// No `model_type`: accepted as whatever the caller expects.
    Unnamed,
    /// A language model, or a model that is not supported.
    Other,
}

/// The content of a model folder's `config.json`.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    keys: Map<String, Value>,
    path: PathBuf,
    /// The folder that it was read from.
    folder: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads `folder/config.json`.
    ///
    /// # Errors
    /// If the file can't be read, or is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let file = Self::parse(&std::fs::read(&path).map_err(ModelError::io(&path))?, &path)?;
        Ok(Self { folder: Some(folder.into()), ..file })
    }

    /// Parses the content of a `config.json`; `path` is the path that errors name.
    ///
    /// # Errors
    /// If `text` is not a JSON object.
    pub fn parse(text: &[u8], path: &Path) -> Result<Self> {
        match serde_json::from_slice(text) {
            Ok(Value::Object(keys)) => {
                let keys = llava::as_imp(keys).map_err(|message| ModelError::file(path, message))?;
                Ok(Self { keys: with_usual_names(keys), path: path.into(), folder: None })
            }
            Ok(_) => Err(ModelError::file(path, "this is not a JSON object")),
            Err(error) => Err(ModelError::file(path, format!("this is not JSON: {error}"))),
        }
    }

    /// The value of `model_type`, or an empty string.
    pub fn model_type(&self) -> &str {
        self.keys.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    /// The kind of model, by `model_type`.
    pub fn kind(&self) -> ModelKind {
        match self.model_type() {
            "" => ModelKind::Unnamed,
            SPLIT_IMP => ModelKind::SplitImp,
            "imp" => ModelKind::Imp,
            name if name.starts_with("imp_") => ModelKind::Imp,
            name if Encoder::by_model_type(name).is_some() => ModelKind::Vision,
            _ => ModelKind::Other,
        }
    }

    /// Reads the configuration of the language model.
    ///
    /// # Errors
    /// If `model_type` is not a supported family, or a key is missing, wrong or not supported.
    pub fn language(&self) -> Result<LanguageConfig> {
        let keys = self.reader(&self.keys);
        let Some(family) = Family::by_model_type(self.model_type()) else {
            let known = Family::ALL.map(Family::model_type).join(", ");
            let message = format!("model_type `{}` is not supported (supported: {known})", self.model_type());
            return Err(keys.wrong(message));
        };
        LanguageConfig::read(&keys, family)
    }

    /// Reads the configuration of a vision encoder, or that of an Imp. The `config.json` of the reference's training code contains
    /// only the encoder's name.
    ///
    /// # Errors
    /// If this is neither a vision encoder nor an Imp, or a key is missing, wrong or not supported.
    pub fn vision(&self) -> Result<VisionConfig> {
        let (nested, kind) = (self.nested_vision(), self.kind());
        let named = self.keys.get("mm_vision_tower").and_then(Value::as_str).unwrap_or_default();
        if !matches!(kind, ModelKind::Imp | ModelKind::Vision | ModelKind::Unnamed) {
            return Err(self.unknown_encoder(self.model_type()));
        }
        if nested.is_none() && kind == ModelKind::Imp {
            let named = NAMED.iter().find(|(name, _)| named.contains(name)).map(|(_, config)| config());
            return named.ok_or_else(|| self.reader(&self.keys).wrong("the key `vision_tower_config` is missing"));
        }
        let keys = nested.unwrap_or(&self.keys);
        let own_type = keys.get("model_type").and_then(Value::as_str);
        let found = match own_type.filter(|_| nested.is_some()) {
            None if kind == ModelKind::Vision => self.model_type(),
            own => own.unwrap_or(SIGLIP),
        };
        let encoder = Encoder::by_model_type(found).ok_or_else(|| self.unknown_encoder(found))?;
        self.check_features(encoder)?;
        let processor = self.processor()?;
        let beside = match (&processor, &self.folder) {
            (Some((keys, path)), _) => Beside::Given(Keys { keys, path }),
            (None, Some(_)) => Beside::Missing,
            (None, None) => Beside::Unknown,
        };
        VisionConfig::read(&self.reader(keys), encoder, beside)
    }

    /// The keys of a vision encoder within those of a larger model.
    fn nested_vision(&self) -> Option<&Map<String, Value>> {
        // Where older files of CLIP have the last, it counts.
        let names = ["vision_config_dict", "vision_tower_config", "vision_config"];
        names.iter().find_map(|name| self.keys.get(*name)?.as_object())
    }

    fn unknown_encoder(&self, found: &str) -> ModelError {
        let why = match found {
            "siglip2" | "siglip2_vision_model" => {
                ": these are the checkpoints of SigLIP 2 for images of any shape (NaFlex); those with \
                                                   a fixed resolution are supported"
            }
            _ => "",
        };
        let known = Encoder::ALL.map(|encoder| encoder.description().whole.0).join(", ");
        self.reader(&self.keys)
            .wrong(format!("model_type `{found}` is not a supported vision encoder (supported: {known}){why}"))
    }

    /// Checks that the features are all patches and nothing else, which LLaVA calls `patch` and transformers `default` where there
    /// is a class token.
    fn check_features(&self, encoder: Encoder) -> Result<()> {
        let strategy = if encoder.has_class() { "default" } else { "full" };
        let keys = self.reader(&self.keys);
        keys.only(&[("vision_feature_select_strategy", &[json!(strategy)])])?;
        if encoder.has_class() {
            keys.only(&[("mm_vision_select_feature", &[json!("patch")])])?;
        }
        Ok(())
    }

    /// The keys of the image processor in the folder, with the file that has them.
    fn processor(&self) -> Result<Option<(Map<String, Value>, PathBuf)>> {
        let Some(folder) = &self.folder else { return Ok(None) };
        for (name, nested) in [("preprocessor_config.json", None), ("processor_config.json", Some("image_processor"))] {
            let path = folder.join(name);
            let text = match std::fs::read(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(ModelError::io(&path)(error)),
            };
            let value: Value = serde_json::from_slice(&text)
                .map_err(|error| ModelError::file(&path, format!("this is not JSON: {error}")))?;
            let keys = nested.map_or(Some(&value), |name| value.get(name));
            if let Some(keys) = keys.and_then(Value::as_object) {
                return Ok(Some((keys.clone(), path)));
            }
        }
        Ok(None)
    }

    /// Reads how an Imp joins vision encoder and language model.
    ///
    /// # Errors
    /// If a key is wrong.
    pub fn imp(&self) -> Result<ImpConfig> {
        ImpConfig::read(&self.reader(&self.keys))
    }

    /// The keys that are neither read nor known to be harmless, with the path to each. They may change the network.
    pub fn unknown_keys(&self) -> Vec<String> {
        let whole = self.reader(&self.keys);
        let nested = |name: &str| {
            let keys = self.keys.get(name).and_then(Value::as_object)?;
            let unknown = Keys { keys, path: &self.path }.unknown(&[known::VISION, known::HARMLESS]);
            Some(unknown.into_iter().map(|key| format!("{name}.{key}")).collect::<Vec<_>>())
        };
        let mut unknown = match self.kind() {
            ModelKind::Vision => whole.unknown(&[known::VISION, known::HARMLESS]),
            ModelKind::Imp => whole.unknown(&[known::LANGUAGE, known::NEUTRAL, known::IMP, known::HARMLESS]),
            ModelKind::SplitImp => whole.unknown(&[known::IMP, known::HARMLESS]),
            ModelKind::Unnamed | ModelKind::Other => {
                whole.unknown(&[known::LANGUAGE, known::NEUTRAL, known::VISION, known::HARMLESS])
            }
        };
        unknown.extend(
            ["vision_config_dict", "vision_tower_config", "vision_config"].into_iter().filter_map(nested).flatten(),
        );
        unknown
    }

    fn reader<'a>(&'a self, keys: &'a Map<String, Value>) -> Keys<'a> {
        Keys { keys, path: &self.path }
    }
}

/// Adds transformers' keys to a file with the keys of Microsoft's Phi code, as in Imp's first releases.
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

/// Returns the `config.json` of a merged Imp.
pub fn merged_json(language: &LanguageConfig, vision: &VisionConfig, imp: &ImpConfig) -> Value {
    let mut value = language.to_json();
    if let (Value::Object(to), Ok(Value::Object(from))) = (&mut value, serde_json::to_value(imp)) {
        to.extend(from);
    }
    let description = language.family.description();
    value["model_type"] = json!(description.imp_model_type);
    value["architectures"] = json!([description.imp_architecture]);
    value["image_token_index"] = json!(crate::sample::IMAGE_TOKEN);
    value["mm_hidden_size"] = json!(vision.hidden_size);
    value["vision_tower_config"] = vision.vision_json();
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// The config of a small Qwen2 with these keys, too.
    fn with(more: &Value) -> ConfigFile {
        let mut config = LanguageConfig::new(Family::Qwen2, 16, 32, 2, 4).to_json();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ConfigFile::parse(config.to_string().as_bytes(), "config.json".as_ref()).unwrap()
    }

    #[test]
    fn what_changes_the_network_is_refused_by_name() {
        for (keys, words) in [
            (json!({"rope_scaling": {"factor": 4.0}}), "`rope_scaling` with `factor` = 4.0 is not supported"),
            (json!({"rope_scaling": {"type": "linear"}}), "`rope_scaling` has no `factor`"),
            (
                json!({"rope_scaling": {"type": "linear", "factor": 0.0}}),
                "`rope_scaling` with `factor` = 0 is not supported",
            ),
            (json!({"rope_scaling": {"type": "mrope", "factor": 4.0}}), "`rope_scaling` of type `mrope`"),
            (json!({"rope_scaling": {"type": "yarn", "factor": 4.0, "gamma": 1}}), "`rope_scaling` with `gamma` = 1"),
            (
                json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}),
                "4 positive numbers as `short_factor`",
            ),
            (json!({"rope_scaling": {"alpha": 2.0}}), "`rope_scaling` with `alpha` = 2.0"),
            (json!({"rope_scaling": "linear"}), "`rope_scaling` must be a table or null"),
            (
                json!({"rope_parameters": {"rope_theta": 1e4, "long_factor": [1.0]}}),
                "`rope_parameters` with `long_factor`",
            ),
            (json!({"num_experts": 8}), "`num_experts` = 8 is not supported"),
            (json!({"final_logit_softcapping": 30.0}), "`final_logit_softcapping` = 30.0"),
            (json!({"layer_types": ["full_attention", "sliding_attention"]}), "of layer 1, and the other keys"),
            (json!({"layer_types": ["linear_attention"]}), "`layer_types` with \"linear_attention\" is not supported"),
            (json!({"quantization_config": {"quant_method": "gptq"}}), "of the method \"gptq\" is not supported"),
        ] {
            let error = with(&keys).language().unwrap_err().to_string();
            assert!(error.contains(words), "{keys}: {error}");
        }
        for keys in [
            json!({"rope_scaling": null}),
            json!({"rope_scaling": {"type": "default"}}),
            json!({"rope_scaling": {"factor": 1.0}}),
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
            json!({"layer_types": ["full_attention", "full_attention"]}),
            json!({"num_experts": null}),
        ] {
            with(&keys).language().unwrap();
            assert!(with(&keys).unknown_keys().is_empty(), "{keys}");
        }
        let layers = json!({"mm_vision_select_layer": [-2, -5]});
        assert!(
            with(&layers).imp().unwrap_err().to_string().contains("features of the layers [-2,-5] are not supported")
        );
        for (keys, words) in [
            (json!({"mm_use_im_start_end": true}), "`mm_use_im_start_end` = true"),
            (json!({"mm_patch_merge_type": "spatial"}), "`mm_patch_merge_type` = \"spatial\""),
        ] {
            assert!(with(&keys).imp().unwrap_err().to_string().contains(words), "{keys}");
        }
        let gray = json!({"model_type": "siglip_vision_model", "num_channels": 1});
        assert!(with(&gray).vision().unwrap_err().to_string().contains("`num_channels` = 1"));
    }

    #[test]
    fn nothing_overrides_the_network_of_a_llava() {
        let text = LanguageConfig::new(Family::Qwen2, 16, 32, 2, 4).to_json();
        let llava = |more: &Value| {
            let mut config = json!({"model_type": "llava", "text_config": text, "vision_config": {}});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            ConfigFile::parse(config.to_string().as_bytes(), "config.json".as_ref())
        };
        for (more, words) in [
            (json!({"imp_flow": {"rope_theta": 3.0}}), "`imp_flow.rope_theta` is no key"),
            (json!({"multimodal_projector_bias": false}), "without biases"),
            (json!({"tie_word_embeddings": true}), "`tie_word_embeddings` is not what it is"),
        ] {
            assert!(llava(&more).unwrap_err().to_string().contains(words), "{more}");
        }
        let own = json!({"imp_flow": {"mm_vision_select_layer": 1, "conversation_template": "phi2"}, "vision_feature_layer": -1});
        let imp = llava(&own).unwrap().imp().unwrap();
        assert_eq!((imp.mm_vision_select_layer, imp.conversation_template.as_deref()), (-1, Some("phi2")));
        let layers = json!({"vision_feature_layer": [-2, -5]});
        assert!(llava(&layers).unwrap().imp().is_err());
    }

    #[test]
    fn unknown_keys_are_found_where_they_are() {
        let keys = json!({"model_type": "imp_qwen2", "residual_gain": 2, "vision_tower_config": {"pool": "max", "hidden_size": 8}});
        assert_eq!(with(&keys).unknown_keys(), ["residual_gain", "vision_tower_config.pool"]);
    }
}
