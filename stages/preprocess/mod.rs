//! The kind `preprocess`: LLaVA-format conversations and their images become training records.
//! Knows the annotation format and the templates; not what the records are trained on.

mod annotations;
mod convert;
pub(crate) mod features;
mod gif;
mod jpeg;
pub(crate) mod map;
pub mod mixture;
pub mod pixels;
pub mod records;
mod rejected;
mod resize;
pub mod template;
#[cfg(test)]
mod tests;
pub mod tokenizer;
mod writer;

use serde::{Deserialize, Serialize};

pub use annotations::Turn;
pub use features::FeatureMeta;
pub use mixture::Mixture;
pub use pixels::AspectRatio;
pub use records::{Meta, Record, RecordSet};
pub use template::Template;
pub use tokenizer::TextTokenizer;

use crate::{
    Job, Stage, StageError,
    forecast::{Ahead, Forecast, Outlook, Records},
    stage::{ConfigIssue, Input},
    training::check_image_size,
};

/// The kind `preprocess`.
#[derive(Debug)]
pub struct Preprocess;

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

/// The input that names folders of images.
const IMAGES: &str = "images";

impl Stage for Preprocess {
    const KIND: &'static str = "preprocess";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "turns LLaVA-format conversations and images into training records";
    const INPUTS: &'static [Input] = &[
        Input::required("data", "a folder with an annotation file, and images"),
        Input::list(IMAGES, "folders that images are looked for in first, by the paths that the records give"),
        Input::required("tokenizer", "the language model's folder, for its tokenizer.json"),
        Input::optional(features::INPUT, "a SigLIP vision encoder, to encode all images once: training then need not"),
    ];
    type Config = PreprocessConfig;

    fn check(config: &PreprocessConfig) -> Result<(), ConfigIssue> {
        if config.max_length == 0 || config.max_length > 1 << 20 {
            return Err(ConfigIssue::new("max_length", "must be between 1 and 1048576"));
        }
        for (key, path) in [("annotations", &config.annotations), ("image_folder", &config.image_folder)] {
            if !stays_inside(path) {
                return Err(ConfigIssue::new(key, "must be a path inside the data folder, without `..`"));
            }
        }
        if config.annotations.is_empty() {
            return Err(ConfigIssue::new("annotations", "must name a file in the data folder"));
        }
        check_image_size(config.image_size)
    }

    fn check_inputs(config: &PreprocessConfig, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        let keys = [
            ("mm_vision_select_layer", config.mm_vision_select_layer.is_some()),
            ("image_size", config.image_size.is_some()),
        ];
        match keys.iter().find(|(_, given)| *given && count(features::INPUT) == 0) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigIssue::new(
                *key,
                format!("is of no use without `{}`: name an encoder there, or leave this out", features::INPUT),
            )),
        }
    }

    fn forecast(config: &PreprocessConfig, _ahead: &Ahead<'_>) -> Forecast {
        let records = Some(Records::Planned { max_length: config.max_length });
        Forecast { outlook: Outlook { records, ..Outlook::default() }, ..Forecast::default() }
    }

    fn run(config: &PreprocessConfig, job: &Job) -> Result<(), StageError> {
        convert::convert(config, job)?;
        match job.optional_input(features::INPUT) {
            Some(encoder) => features::add(encoder, config, job),
            None => Ok(()),
        }
    }
}

/// Whether a relative path can't lead out of its folder.
pub(crate) fn stays_inside(path: &str) -> bool {
    use std::path::{Component, Path};
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}
