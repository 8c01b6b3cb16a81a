//! The kind `preprocess`: turns LLaVA-format conversations and their images into training records.
//! Independent of how models are trained on the records.

mod annotations;
mod config;
mod convert;
mod faults;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod lost;
mod rejected;
mod sink;
#[cfg(test)]
mod tests;

use self::config::IMAGES;
pub use self::config::PreprocessConfig;
use crate::{
    Job, Stage, StageError,
    contract::{
        figure::{Better, Figure},
        forecast::{Ahead, Forecast, Outlook, Records},
        input::Input,
        keys::{Key, Keys},
        paths::stays_inside,
        stage::ConfigIssue,
    },
    data::features::INPUT,
    image::size::check_image_size,
    net::patterns::patterns,
};

/// The kind `preprocess`.
#[derive(Debug)]
pub struct Preprocess;

impl Stage for Preprocess {
    const KIND: &'static str = "preprocess";
    const VERSION: u32 = 9;
    const ABOUT: &'static str = "turns LLaVA-format conversations and images into training records";
    const INPUTS: &'static [Input] = &[
        Input::required("data", "a folder with an annotation file and images"),
        Input::list(IMAGES, "folders that are searched for the records' images first"),
        Input::required("tokenizer", "the language model's folder, which has tokenizer.json"),
        Input::optional(INPUT, "a vision encoder, to encode all images once and for all training stages"),
    ];
    const FIGURES: &'static [Figure] = &[
        Figure::count("records", "records"),
        Figure::count("images", "images"),
        Figure::count("tokens", "tokens"),
        Figure::count("labelled_tokens", "tokens"),
        Figure::detail("mismatched", Better::Lower, "records"),
        Figure::detail("cut", Better::Lower, "records"),
        Figure::detail("masked", Better::Lower, "records"),
        Figure::detail("without_image_token", Better::Lower, "records"),
        Figure::detail("rejected", Better::Lower, "records"),
        Figure::detail("left_out", Better::Lower, "records"),
    ];
    type Config = PreprocessConfig;

    fn keys() -> Vec<Key> {
        PreprocessConfig::keys(&serde_json::json!({"annotations": "", "template": "plain"}))
    }

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
        patterns(&config.leave_out).map_err(|message| ConfigIssue::new("leave_out", message))?;
        check_image_size(config.image_size)
    }

    fn check_inputs(config: &PreprocessConfig, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        let keys = [
            ("mm_vision_select_layer", config.mm_vision_select_layer.is_some()),
            ("image_size", config.image_size.is_some()),
            ("precision", !config.precision.is_default()),
        ];
        match keys.iter().find(|(_, given)| *given && count(INPUT) == 0) {
            None => Ok(()),
            Some((key, _)) => Err(ConfigIssue::new(
                *key,
                format!("has no effect without `{INPUT}`: name an encoder there, or remove this key"),
            )),
        }
    }

    fn uses_gpu(_config: &PreprocessConfig, count: &dyn Fn(&str) -> usize) -> bool {
        count(INPUT) > 0
    }

    fn uses_all_gpus() -> bool {
        true
    }

    fn forecast(config: &PreprocessConfig, _ahead: &Ahead<'_>) -> Forecast {
        let records = Some(Records::Planned { max_length: config.max_length, template: config.template.name() });
        Forecast { outlook: Outlook { records, ..Outlook::default() }, ..Forecast::default() }
    }

    fn run(config: &PreprocessConfig, job: &Job) -> Result<(), StageError> {
        convert::convert(config, job)?;
        match job.optional_input(INPUT) {
            Some(encoder) => features::add(encoder, config, job),
            None => Ok(()),
        }
    }
}
