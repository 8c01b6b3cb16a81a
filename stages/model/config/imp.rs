//! What joins the towers of an Imp.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::keys::Keys;
use crate::error::Result;

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
    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
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
