//! The `config.json` of transformers' `LlavaForConditionalGeneration`, both ways. Fields: transformers' `configuration_llava.py`.

use serde_json::{Map, Value, json};

use super::{ImpConfig, LanguageConfig, ProjectorType, SiglipConfig};

/// The `model_type` of the whole model.
pub(super) const MODEL_TYPE: &str = "llava";
/// Where what only imp-flow knows of a model is kept. Other programs carry unknown keys along.
const OWN: &str = "imp_flow";

/// Returns the `config.json` of an Imp of which the tower's first `used` layers compute the features. The tower in it has one layer
/// more, since its features are the hidden state before the last layer.
pub(crate) fn llava_json(language: &LanguageConfig, siglip: &SiglipConfig, used: usize, imp: &ImpConfig) -> Value {
    let text = language.to_json();
    let mut vision = siglip.vision_json();
    vision["num_hidden_layers"] = json!(used + 1);
    vision["num_channels"] = json!(3);
    vision["vision_use_head"] = json!(false);
    json!({
        "model_type": MODEL_TYPE,
        "architectures": ["LlavaForConditionalGeneration"],
        "image_seq_length": siglip.patches(),
        "multimodal_projector_bias": true,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": language.tie_word_embeddings,
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "full",
        "text_config": text,
        "vision_config": vision,
        OWN: imp,
    })
}

/// The same model in the keys of a merged Imp; what has no counterpart there is left as it is. Keys of any other model are returned
/// unchanged.
pub(super) fn as_imp(mut keys: Map<String, Value>) -> Map<String, Value> {
    if keys.get("model_type").and_then(Value::as_str) != Some(MODEL_TYPE) {
        return keys;
    }
    let Some(Value::Object(text)) = keys.remove("text_config") else { return keys };
    let kind = text.get("model_type").and_then(Value::as_str).unwrap_or("llama");
    let mut imp = Map::from_iter([
        ("mm_projector_type".to_string(), json!(ProjectorType::Mlp(2))),
        ("mm_vision_select_layer".to_string(), keys.remove("vision_feature_layer").unwrap_or(json!(-2))),
    ]);
    if let Some(Value::Object(own)) = keys.remove(OWN) {
        imp.extend(own.into_iter().filter(|(key, _)| key != "mm_vision_select_layer"));
    }
    imp.insert("model_type".into(), json!(format!("imp_{kind}")));
    for harmless in ["architectures", "image_seq_length", "model_type", "multimodal_projector_bias"] {
        keys.remove(harmless);
    }
    text.into_iter().chain(keys).for_each(|(key, value)| {
        imp.entry(key).or_insert(value);
    });
    imp
}
