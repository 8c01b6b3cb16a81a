//! How an Imp joins vision encoder and language model: the keys of `config.json` that LLaVA introduced.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::keys::Keys;
use crate::error::Result;

/// How vision encoder and language model are joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ImpConfig {
    /// The projector's layers.
    pub mm_projector_type: ProjectorType,
    /// Index of the vision encoder's hidden state that is used as features; negative counts from the end.
    pub mm_vision_select_layer: i64,
    /// How images are made square.
    pub image_aspect_ratio: ImageAspect,
    /// Context length in positions; longer sequences are truncated after the splice.
    pub tokenizer_model_max_length: usize,
    /// The template of the conversations that it was trained on, by its name in pipelines, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation_template: Option<String>,
    /// The tokenizer of its training data, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trained_tokenizer: Option<TokenizerMark>,
}

impl Default for ImpConfig {
    fn default() -> Self {
        Self {
            mm_projector_type: ProjectorType::Mlp(2),
            mm_vision_select_layer: -2,
            image_aspect_ratio: AspectRatio::Square.into(),
            tokenizer_model_max_length: 3072,
            conversation_template: None,
            trained_tokenizer: None,
        }
    }
}

impl ImpConfig {
    /// The keys that are written.
    pub(super) const KEYS: [&'static str; 6] = [
        "mm_projector_type",
        "mm_vision_select_layer",
        "image_aspect_ratio",
        "tokenizer_model_max_length",
        "conversation_template",
        "trained_tokenizer",
    ];

    pub(super) fn read(keys: &Keys<'_>) -> Result<Self> {
        let default = Self::default();
        // Each of these adds tokens, or reads features in another way.
        keys.only(&[
            ("mm_use_im_start_end", &[json!(false)]),
            ("mm_patch_merge_type", &[json!("flat")]),
            ("mm_resampler_type", &[]),
            ("s2", &[json!(false)]),
            ("projector_hidden_act", &[json!("gelu")]),
        ])?;
        let text = |name: &str| keys.get(name).and_then(Value::as_str);
        let projector = text("mm_projector_type").map(str::parse).transpose();
        Ok(Self {
            mm_projector_type: projector
                .map_err(|message: String| keys.wrong(format!("mm_projector_type {message}")))?
                .unwrap_or(default.mm_projector_type),
            mm_vision_select_layer: keys.get("mm_vision_select_layer").map_or(Ok(-2), |layer| {
                let several =
                    || keys.wrong(format!("features of the layers {layer} are not supported: it must be one number"));
                layer.as_i64().ok_or_else(several)
            })?,
            image_aspect_ratio: text("image_aspect_ratio").map_or(default.image_aspect_ratio, ImageAspect::by_name),
            tokenizer_model_max_length: keys
                .number("tokenizer_model_max_length", Some(default.tokenizer_model_max_length))?,
            conversation_template: text("conversation_template").map(Into::into),
            trained_tokenizer: keys
                .get("trained_tokenizer")
                .map(|mark| TokenizerMark::deserialize(mark).map_err(|_| keys.wrong("`trained_tokenizer` is damaged")))
                .transpose()?,
        })
    }
}

/// What tells a tokenizer from others, beside the records and models that it was used for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenizerMark {
    /// The digest of its vocabulary and of what it makes of a text.
    pub blake3: String,
    /// The tokens that were added to the vocabulary, by their ids.
    pub added: BTreeMap<u32, String>,
}

impl TokenizerMark {
    /// Whether all ids that both know mean the same to both. One may have more added tokens than the other.
    pub fn agrees_with(&self, other: &Self) -> bool {
        let ids = |mark: &Self| mark.added.iter().map(|(id, token)| (token.clone(), *id)).collect::<BTreeMap<_, _>>();
        let (ours, theirs) = (ids(self), ids(other));
        self.blake3 == other.blake3
            && self.added.iter().all(|(id, token)| other.added.get(id).is_none_or(|other| other == token))
            && ours.iter().all(|(token, id)| theirs.get(token).is_none_or(|other| other == id))
    }
}

/// `mm_projector_type`: the linear layers of a projector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProjectorType {
    /// `identity`: no layer.
    Identity,
    /// `linear`: one layer.
    Linear,
    /// `mlp{N}x_gelu`: N layers with a GELU between consecutive ones.
    Mlp(usize),
}

impl ProjectorType {
    /// The largest supported N.
    const DEEPEST: usize = 16;

    /// Number of linear layers.
    pub fn depth(self) -> usize {
        match self {
            Self::Identity => 0,
            Self::Linear => 1,
            Self::Mlp(layers) => layers,
        }
    }
}

impl fmt::Display for ProjectorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity => f.write_str("identity"),
            Self::Linear => f.write_str("linear"),
            Self::Mlp(layers) => write!(f, "mlp{layers}x_gelu"),
        }
    }
}

impl FromStr for ProjectorType {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let mlps = (0..=Self::DEEPEST).map(Self::Mlp);
        let found = [Self::Identity, Self::Linear].into_iter().chain(mlps).find(|known| known.to_string() == text);
        found.ok_or_else(|| {
            format!(
                "`{text}` is not supported (supported: mlp{{N}}x_gelu with N up to {}, linear, identity)",
                Self::DEEPEST
            )
        })
    }
}

impl Serialize for ProjectorType {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How an image is made square.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AspectRatio {
    /// Stretch.
    #[default]
    Square,
    /// Pad the short side symmetrically with grey (127, 127, 127).
    Pad,
    /// Crop to the central square.
    Crop,
}

impl AspectRatio {
    /// The name in `config.json` and in pipelines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Square => "square",
            Self::Pad => "pad",
            Self::Crop => "crop",
        }
    }

    /// The inverse of [`AspectRatio::name`].
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::Square, Self::Pad, Self::Crop].into_iter().find(|ratio| ratio.name() == name)
    }
}

/// `image_aspect_ratio` of a `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum ImageAspect {
    /// An implemented one.
    Known(AspectRatio),
    /// A different one of LLaVA's, such as `anyres`; preserved when the model is written.
    Other(String),
}

impl ImageAspect {
    fn by_name(name: &str) -> Self {
        AspectRatio::by_name(name).map_or_else(|| Self::Other(name.into()), Self::Known)
    }
}

impl From<AspectRatio> for ImageAspect {
    fn from(ratio: AspectRatio) -> Self {
        Self::Known(ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for text in ["identity", "linear", "mlp1x_gelu", "mlp2x_gelu", "mlp16x_gelu"] {
            let parsed: ProjectorType = text.parse().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(serde_json::json!(parsed), text);
        }
        for text in ["", "mlpx_gelu", "mlp17x_gelu", "mlp02x_gelu", "mlp2x_relu", "Linear"] {
            assert!(
                text.parse::<ProjectorType>()
                    .is_err_and(|error| error.contains("is not supported (supported: mlp{N}x_gelu")),
                "{text}"
            );
        }
        for text in ["square", "pad", "crop", "anyres"] {
            assert_eq!(serde_json::json!(ImageAspect::by_name(text)), text);
        }
    }
}
