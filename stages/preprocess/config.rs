//! The keys of `preprocess`.

use serde::{Deserialize, Serialize};

use crate::{image::pixels::AspectRatio, text::template::Template};

/// The input that names folders of images.
pub(super) const IMAGES: &str = "images";

/// The keys of `preprocess`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreprocessConfig {
    /// The annotation file, in the data folder: a JSON array in LLaVA's format.
    pub annotations: String,
    /// The folder that the records' image paths start from, in the data folder.
    #[serde(default = "image_folder")]
    pub image_folder: String,
    /// How conversations become text.
    pub template: Template,
    /// How images become square. The images are kept as they are; training reads this from the records.
    #[serde(default)]
    pub image_aspect_ratio: AspectRatio,
    /// Which hidden states of the encoder named by `cache_vision_features` are the features: -2, the last but one, if left
    /// out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mm_vision_select_layer: Option<i64>,
    /// The images' size for that encoder, if not its own: the same as in `pretrain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// The context: longer sequences are cut.
    #[serde(default = "max_length")]
    pub max_length: usize,
    /// So many records may be unusable before the stage fails.
    #[serde(default)]
    pub max_rejected: usize,
}

fn image_folder() -> String {
    "images".into()
}

fn max_length() -> usize {
    3072
}
