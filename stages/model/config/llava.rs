//! The `config.json` of transformers' `LlavaForConditionalGeneration`, both ways. Fields: transformers' `configuration_llava.py`.

use serde_json::{Map, Value, json};

use super::{Encoder, ImpConfig, LanguageConfig, ProjectorType, VisionConfig};

/// The `model_type` of the whole model.
pub(super) const MODEL_TYPE: &str = "llava";
/// Where what only imp-flow knows of a model is kept. Other programs carry unknown keys along.
const OWN: &str = "imp_flow";

/// Returns the `config.json` of an Imp of which the tower's first `used` layers compute the features. The tower in it has one layer
/// more, since its features are the hidden state before the last layer.
pub(crate) fn llava_json(language: &LanguageConfig, tower: &VisionConfig, used: usize, imp: &ImpConfig) -> Value {
    let text = language.to_json();
    let mut vision = tower.network_json();
    vision["num_hidden_layers"] = json!(used + 1);
    vision["num_channels"] = json!(3);
    if tower.encoder == Encoder::Siglip {
        vision["vision_use_head"] = json!(false);
    }
    // The class token is the first feature there, and dropped by default.
    let strategy = if tower.encoder.has_class() { "default" } else { "full" };
    json!({
        "model_type": MODEL_TYPE,
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": tower.patches(),
        "multimodal_projector_bias": true,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": language.tie_word_embeddings,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": strategy,
        "text_config": text,
        "vision_config": vision,
        OWN: imp,
    })
}

/// The same model in the keys of a merged Imp; what has no counterpart there is left as it is. Keys of any other model are returned
/// unchanged.
///
/// # Errors
/// In words, if a key would change the network that the others describe.
pub(super) fn as_imp(mut keys: Map<String, Value>) -> Result<Map<String, Value>, String> {
    if keys.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
        return Ok(keys);
    }
    let Some(Value::Object(text)) = keys.remove("text_config") else { return Ok(keys) };
    if keys.remove("multimodal_projector_bias").is_some_and(|bias| bias != true) {
        return Err("a projector without biases (`multimodal_projector_bias`) is not supported".into());
    }
    let tied = |keys: &Map<String, Value>| keys.get("tie_word_embeddings").cloned().filter(|tied| !tied.is_null());
    if let (Some(whole), Some(part)) = (tied(&keys), tied(&text))
        && whole != part
    {
        return Err("`tie_word_embeddings` is not what it is in `text_config`".into());
    }
    // transformers' default is a Llama.
    let kind = text.get("model_type").and_then(Value::as_str).unwrap_or("llama");
    let mut imp = Map::from_iter([
        ("model_type".to_string(), json!(format!("imp_{kind}"))),
        ("mm_projector_type".to_string(), json!(ProjectorType::Mlp(2))),
        ("mm_vision_select_layer".to_string(), keys.remove("vision_feature_layer").unwrap_or(json!(-2))),
    ]);
    if let Some(Value::Object(own)) = keys.remove(OWN) {
        for (key, value) in own {
            if !ImpConfig::KEYS.contains(&key.as_str()) {
                return Err(format!("`{OWN}.{key}` is no key of an Imp's"));
            }
            // What the other keys say of the network counts.
            imp.entry(key).or_insert(value);
        }
    }
    for harmless in ["architectures", "image_seq_length", "model_type"] {
        keys.remove(harmless);
    }
    text.into_iter().chain(keys).for_each(|(key, value)| {
        imp.entry(key).or_insert(value);
    });
    Ok(imp)
}
