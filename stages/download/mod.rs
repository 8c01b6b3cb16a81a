//! The kind `download`: brings data and models into the store, from the user's disk or from built-in generators.
//! Knows where things come from; not what other stages do with them.

mod folder;
pub(crate) mod shapes;
#[cfg(test)]
mod tests;
mod tiny;

use std::path::Path;

use imp_model::gguf;
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    forecast::{Ahead, Forecast, Outlook},
    stage::{ConfigIssue, Input},
};

/// The kind `download`.
#[derive(Debug)]
pub struct Download;

/// The keys of `download`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownloadConfig {
    /// A file or folder, or `builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-siglip`.
    pub source: String,
    /// `builtin:shapes`: images to train on (1200).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<usize>,
    /// `builtin:shapes`: images to evaluate on (160).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_images: Option<usize>,
    /// `builtin:tiny-*`: sizes of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelOptions>,
}

/// `[model]`: sizes of a built-in model. What is left out has the size in brackets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelOptions {
    /// Width of the residual stream (128 in the language model, 256 in the vision encoder).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hidden_size: Option<usize>,
    /// Blocks (4 in the language model, 2 in the vision encoder, of which the last but one gives the features).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Attention heads (8 in the language model, 4 in the vision encoder).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// `tiny-phi`: tokens of the tokenizer (512).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
    /// `tiny-siglip`: pixels in a row of an image (64).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// `tiny-siglip`: pixels in a row of a patch (32).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch_size: Option<usize>,
}

/// Where something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source<'a> {
    Path(&'a str),
    Shapes,
    TinyPhi,
    TinySiglip,
}

const BUILTINS: &str = "`builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-siglip`";

impl<'a> Source<'a> {
    /// Reads `source`; what follows the scheme is not looked at.
    fn parse(text: &'a str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text.trim().is_empty() => Err("must name a file, a folder or a built-in source".into()),
            Some(("builtin", "shapes")) => Ok(Self::Shapes),
            Some(("builtin", "tiny-phi")) => Ok(Self::TinyPhi),
            Some(("builtin", "tiny-siglip")) => Ok(Self::TinySiglip),
            Some(("builtin", other)) => Err(format!("there is no `builtin:{other}`; there are {BUILTINS}")),
            Some((scheme, rest)) if rest.starts_with("//") => Err(format!(
                "`{scheme}://` is not supported yet: download it yourself, and give the path of the folder"
            )),
            _ => Ok(Self::Path(text)),
        }
    }
}

impl Stage for Download {
    const KIND: &'static str = "download";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "brings data or a model into the cache, from disk or a built-in generator";
    const INPUTS: &'static [Input] = &[];
    type Config = DownloadConfig;

    fn check(config: &DownloadConfig) -> Result<(), ConfigIssue> {
        let source = Source::parse(&config.source).map_err(|message| ConfigIssue::new("source", message))?;
        let only = |key: &str, given: bool, right: bool, of: &str| {
            if given && !right { Err(ConfigIssue::new(key, format!("belongs to {of} only"))) } else { Ok(()) }
        };
        let (shapes, phi, siglip) = (source == Source::Shapes, source == Source::TinyPhi, source == Source::TinySiglip);
        only("images", config.images.is_some(), shapes, "`builtin:shapes`")?;
        only("eval_images", config.eval_images.is_some(), shapes, "`builtin:shapes`")?;
        only("model", config.model.is_some(), phi || siglip, "`builtin:tiny-phi` and `builtin:tiny-siglip`")?;
        let model = config.model.clone().unwrap_or_default();
        only("model.vocab_size", model.vocab_size.is_some(), phi, "`builtin:tiny-phi`")?;
        only("model.image_size", model.image_size.is_some(), siglip, "`builtin:tiny-siglip`")?;
        only("model.patch_size", model.patch_size.is_some(), siglip, "`builtin:tiny-siglip`")?;
        check_ranges(config, &model)
    }

    fn sources(config: &DownloadConfig) -> Vec<String> {
        match Source::parse(&config.source) {
            Ok(Source::Path(path)) => vec![path.into()],
            _ => Vec::new(),
        }
    }

    fn forecast(config: &DownloadConfig, ahead: &Ahead<'_>) -> Forecast {
        let model = config.model.clone().unwrap_or_default();
        let outlook = match Source::parse(&config.source) {
            Ok(Source::Path(path)) => ahead.sources.get(path).map(|source| outlook_of(source)).unwrap_or_default(),
            Ok(Source::TinyPhi) => tiny::phi_outlook(&model),
            Ok(Source::TinySiglip) => tiny::siglip_outlook(&model),
            _ => Outlook::default(),
        };
        Forecast { outlook, memory: None }
    }

    fn run(config: &DownloadConfig, job: &Job) -> Result<(), StageError> {
        let model = config.model.clone().unwrap_or_default();
        let source = Source::parse(&config.source)
            .map_err(|message| StageError::failed(format!("`source` {message}"), "correct `source` in the pipeline"))?;
        match source {
            // GGUF files hold one language model: from here on it is a folder like any other.
            Source::Path(path) if is_gguf(Path::new(path)) => gguf::convert(job.source(path)?, &job.output())
                .map_err(|error| StageError::input(error.path(), error.message(), "give a GGUF file of a Llama model")),
            Source::Path(path) => folder::copy(job, job.source(path)?, path),
            Source::Shapes => shapes::write(job, config.images.unwrap_or(1200), config.eval_images.unwrap_or(160)),
            Source::TinyPhi => tiny::write_phi(job, &model),
            Source::TinySiglip => tiny::write_siglip(job, &model),
        }
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Of what a file or folder of the user's will be in the store.
fn outlook_of(source: &Path) -> Outlook {
    if !is_gguf(source) {
        return Outlook::of_folder(source);
    }
    let config = gguf::language_config(source).ok();
    let bytes = config.as_ref().map_or(0, |config| 2 * config.parameters() as u64);
    Outlook::of_language_model(config, bytes)
}

fn check_ranges(config: &DownloadConfig, model: &ModelOptions) -> Result<(), ConfigIssue> {
    let ranges = [
        ("images", config.images, 1, 200_000),
        ("eval_images", config.eval_images, 1, 200_000),
        ("model.hidden_size", model.hidden_size, 8, 8192),
        ("model.layers", model.layers, 1, 128),
        ("model.heads", model.heads, 1, 128),
        // 256 bytes and two special tokens are always there.
        ("model.vocab_size", model.vocab_size, 300, 65_536),
        ("model.image_size", model.image_size, 16, 1024),
        ("model.patch_size", model.patch_size, 2, 128),
    ];
    for (key, value, least, most) in ranges {
        if value.is_some_and(|value| !(least..=most).contains(&value)) {
            return Err(ConfigIssue::new(key, format!("must be between {least} and {most}")));
        }
    }
    let usual = if config.source == "builtin:tiny-phi" { tiny::PHI } else { tiny::SIGLIP };
    let (hidden, heads) = (model.hidden_size.unwrap_or(usual.hidden_size), model.heads.unwrap_or(usual.heads));
    if hidden % (4 * heads) != 0 {
        // Half of a head is rotated, in pairs.
        return Err(ConfigIssue::new("model.hidden_size", format!("must be a multiple of {}, 4 x heads", 4 * heads)));
    }
    if model.patch_size.unwrap_or(tiny::PATCH_SIZE) > model.image_size.unwrap_or(tiny::IMAGE_SIZE) {
        return Err(ConfigIssue::new("model.patch_size", "must not be larger than image_size"));
    }
    Ok(())
}
