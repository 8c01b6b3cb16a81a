//! The keys of `preprocess`. Independent of how they are carried out.

use imp_model::Precision;
use serde::{Deserialize, Serialize};

use crate::{contract::keys::keys, image::pixels::AspectRatio, text::template::Template};

/// The name of the input for image folders.
pub(super) const IMAGES: &str = "images";

keys! {
    /// The keys of `preprocess`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct PreprocessConfig {
        /// The annotation file in the data folder: a JSON array, or JSON lines, in LLaVA's format.
        pub annotations: String,
        /// Folder in the data folder that the records' image paths are relative to.
        #[serde(default = "image_folder")]
        pub image_folder: String,
        /// Format of the conversations' text.
        pub template: Template,
        /// How images are made square. Images are stored unchanged; training reads this value from the records.
        #[serde(default)]
        pub image_aspect_ratio: AspectRatio,
        /// Layer of the `cache_vision_features` encoder whose hidden states are the features (default: -2, the second to last).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub mm_vision_select_layer: Option<i64>,
        /// Image size for that encoder (default: the encoder's own). Must be the same as in `pretrain`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image_size: Option<usize>,
        /// Of that encoder's matrix products: `f32` (the default), or `bf16`, which rounds their operands to bf16 (to nearest
        /// even). Sums and everything else are in f32. Must be the same in the stages that train on the features.
        #[serde(default, skip_serializing_if = "Precision::is_default")]
        pub precision: Precision,
        /// Longest sequence in tokens; longer ones are truncated.
        #[serde(default = "max_length")]
        pub max_length: usize,
        /// Patterns of image paths: records with such an image are left out, and counted. `textvqa/*` leaves `TextCaps` out of LLaVA's
        /// conversations.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        pub leave_out: Vec<String>,
        /// Number of unusable records that the stage tolerates.
        #[serde(default)]
        pub max_rejected: usize,
    }
}

fn image_folder() -> String {
    "images".into()
}

fn max_length() -> usize {
    3072
}
