//! The kind `download`: brings data and models into the store, from a hub, a web server, the user's disk or built-in
//! generators.
//! Knows where things come from; not what other stages do with them.

mod folder;
mod remote;
pub(crate) mod shapes;
#[cfg(test)]
mod tests;
mod tiny;

use std::{fs, path::Path};

use imp_model::{config::Family, gguf};
use serde::{Deserialize, Serialize};

use self::remote::{Check, Format, HubSource, Policy, S3Source};
use crate::{
    Job, Stage, StageError,
    forecast::{Ahead, Forecast, Outlook},
    preprocess::stays_inside,
    stage::{ConfigIssue, Input},
};

/// The kind `download`.
#[derive(Debug)]
pub struct Download;

/// The keys of `download`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DownloadConfig {
    /// `hf://OWNER/REPO@REVISION`, `hf://datasets/OWNER/REPO@REVISION`, `https://...`, `s3://BUCKET/KEY`, a file or folder,
    /// or `builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-qwen2`, `builtin:tiny-phi3`, `builtin:tiny-siglip`.
    pub source: String,
    /// `hf://`, `s3://`: patterns of the files to bring, such as `*.json`; all if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// SHA-256 of a single file, before it is unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// BLAKE3 of a single file, before it is unpacked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Whether archives (`.zip`, `.tar`, `.tar.gz`, `.tar.zst`) become the folders that they hold. Left out, those from
    /// elsewhere do and the user's own don't.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpack: Option<bool>,
    /// A folder of the artifact to put everything into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<String>,
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
    /// `tiny-phi`, `tiny-qwen2`, `tiny-phi3`: tokens of the tokenizer (512).
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
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source<'a> {
    Path(&'a str),
    Hub(HubSource),
    Url(&'a str),
    S3(S3Source),
    Shapes,
    TinyLanguage(Family),
    TinySiglip,
}

const BUILTINS: &str =
    "`builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-qwen2`, `builtin:tiny-phi3`, `builtin:tiny-siglip`";

impl<'a> Source<'a> {
    /// Reads `source`; what follows the scheme is not looked at.
    fn parse(text: &'a str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text.trim().is_empty() => Err("must name a file, a folder or a built-in source".into()),
            Some(("builtin", "shapes")) => Ok(Self::Shapes),
            Some(("builtin", "tiny-phi")) => Ok(Self::TinyLanguage(Family::Phi)),
            Some(("builtin", "tiny-qwen2")) => Ok(Self::TinyLanguage(Family::Qwen2)),
            Some(("builtin", "tiny-phi3")) => Ok(Self::TinyLanguage(Family::Phi3)),
            Some(("builtin", "tiny-siglip")) => Ok(Self::TinySiglip),
            Some(("builtin", other)) => Err(format!("there is no `builtin:{other}`; there are {BUILTINS}")),
            Some(("hf", rest)) if rest.starts_with("//") => HubSource::parse(&rest[2..]).map(Self::Hub),
            Some(("s3", rest)) if rest.starts_with("//") => S3Source::parse(&rest[2..]).map(Self::S3),
            Some(("http" | "https", rest)) if rest.starts_with("//") => match remote::name_of(text) {
                Some(_) => Ok(Self::Url(text)),
                None => Err("must name a file on the server".into()),
            },
            Some((scheme, rest)) if rest.starts_with("//") => Err(format!(
                "begins with `{scheme}://`, which is not supported: use `hf://`, `https://` or `s3://`, or download it \
                 yourself and give the path of the folder"
            )),
            _ => Ok(Self::Path(text)),
        }
    }
}

impl DownloadConfig {
    /// What a single file must hash to.
    fn checks(&self) -> Vec<Check> {
        let sha256 = self.sha256.clone().map(Check::Sha256);
        sha256.into_iter().chain(self.blake3.clone().map(Check::Blake3)).collect()
    }
}

impl Stage for Download {
    const KIND: &'static str = "download";
    const VERSION: u32 = 4;
    const ABOUT: &'static str =
        "brings data or a model into the cache: from a hub, a server, disk or a built-in generator";
    const INPUTS: &'static [Input] = &[];
    type Config = DownloadConfig;

    fn cpus(config: &DownloadConfig) -> usize {
        // What comes over a network waits for it most of the time.
        usize::from(matches!(Source::parse(&config.source), Ok(Source::Hub(_) | Source::S3(_) | Source::Url(_))))
    }

    fn check(config: &DownloadConfig) -> Result<(), ConfigIssue> {
        let source = Source::parse(&config.source).map_err(|message| ConfigIssue::new("source", message))?;
        let only = |key: &str, given: bool, right: bool, of: &str| {
            if given && !right { Err(ConfigIssue::new(key, format!("belongs to {of} only"))) } else { Ok(()) }
        };
        let (shapes, siglip) = (source == Source::Shapes, source == Source::TinySiglip);
        let language = matches!(source, Source::TinyLanguage(_));
        only("images", config.images.is_some(), shapes, "`builtin:shapes`")?;
        only("eval_images", config.eval_images.is_some(), shapes, "`builtin:shapes`")?;
        only("model", config.model.is_some(), language || siglip, "`builtin:tiny-...`")?;
        let model = config.model.clone().unwrap_or_default();
        only("model.vocab_size", model.vocab_size.is_some(), language, "the language models among `builtin:tiny-...`")?;
        only("model.image_size", model.image_size.is_some(), siglip, "`builtin:tiny-siglip`")?;
        only("model.patch_size", model.patch_size.is_some(), siglip, "`builtin:tiny-siglip`")?;
        let path = matches!(source, Source::Path(_));
        let many = matches!(source, Source::Hub(_) | Source::S3(_));
        let remote = many || matches!(source, Source::Url(_));
        let hashed = path || matches!(source, Source::Url(_) | Source::S3(_));
        only("files", !config.files.is_empty(), many, "`hf://` and `s3://` sources")?;
        only("sha256", config.sha256.is_some(), hashed, "a single file; the hub's own hashes are always checked")?;
        only("blake3", config.blake3.is_some(), hashed, "a single file; the hub's own hashes are always checked")?;
        only("unpack", config.unpack.is_some(), remote || path, "sources that are not built in")?;
        let placed = remote || path && config.unpack == Some(true);
        only("into", config.into.is_some(), placed, "what is downloaded or unpacked")?;
        check_texts(config)?;
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
            Ok(Source::TinyLanguage(family)) => tiny::language_outlook(family, &model),
            Ok(Source::TinySiglip) => tiny::siglip_outlook(&model),
            // Models are looked for where `into` has not put them.
            Ok(Source::Hub(source)) => {
                let forecast = remote::ahead::hub(source, config.files.clone());
                return if config.into.is_none() { forecast } else { forecast.without_outlook() };
            }
            Ok(Source::Url(url)) => return remote::ahead::url(url),
            Ok(Source::S3(source)) => return remote::ahead::s3(source, config.files.clone()),
            Ok(Source::Shapes) | Err(_) => Outlook::default(),
        };
        Forecast { outlook, ..Forecast::default() }
    }

    fn run(config: &DownloadConfig, job: &Job) -> Result<(), StageError> {
        let model = config.model.clone().unwrap_or_default();
        let source = Source::parse(&config.source)
            .map_err(|message| StageError::failed(format!("`source` {message}"), "correct `source` in the pipeline"))?;
        match source {
            Source::Path(path) => bring_own(job, path, config),
            Source::Hub(source) => remote::hub(job, &source, config, &Policy::default()),
            Source::Url(url) => remote::url(job, url, config, &Policy::default()),
            Source::S3(source) => remote::s3(job, &source, config, &Policy::default()),
            Source::Shapes => shapes::write(job, config.images.unwrap_or(1200), config.eval_images.unwrap_or(160)),
            Source::TinyLanguage(family) => tiny::write_language(job, family, &model),
            Source::TinySiglip => tiny::write_siglip(job, &model),
        }
    }
}

/// Copies or unpacks what the user has.
fn bring_own(job: &Job, written: &str, config: &DownloadConfig) -> Result<(), StageError> {
    let path = job.source(written)?;
    let checks = config.checks();
    if !checks.is_empty() && path.is_dir() {
        let help = "leave `sha256` and `blake3` out: the content of a folder is looked at in any case";
        return Err(StageError::input(path, "this is a folder, and a hash is of one file", help));
    }
    // What is not there is named below.
    if path.is_file() {
        let help = "it is another file than was meant, or damaged";
        remote::verify(path, &checks).map_err(|message| StageError::input(path, message, help))?;
    }
    match Format::of(written).filter(|_| config.unpack == Some(true) && path.is_file()) {
        Some(format) => {
            let folder = job.output().join(config.into.as_deref().unwrap_or_default());
            fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
            remote::unpack(job, path, written, format, &folder)
        }
        None if config.unpack == Some(true) => Err(StageError::input(
            path,
            "this is no archive",
            "give a .zip, .tar, .tar.gz or .tar.zst, or leave `unpack` out",
        )),
        None if is_gguf(path) && path.is_file() => convert(path, path, &job.output()),
        None => folder::copy(job, path, written),
    }
}

/// GGUF files hold one language model: from here on it is a folder like any other. A person knows the file as `name`.
fn convert(file: &Path, name: &Path, folder: &Path) -> Result<(), StageError> {
    gguf::convert(file, folder)
        .map_err(|error| StageError::input(name, error.message(), "give a GGUF file of a Llama model"))
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

fn check_texts(config: &DownloadConfig) -> Result<(), ConfigIssue> {
    for (key, hash) in [("sha256", &config.sha256), ("blake3", &config.blake3)] {
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hash.as_ref().is_some_and(|hash| !is_hash(hash)) {
            return Err(ConfigIssue::new(key, "must be 64 hexadecimal digits"));
        }
    }
    if config.into.as_ref().is_some_and(|into| into.is_empty() || !stays_inside(into)) {
        return Err(ConfigIssue::new("into", "must be a path inside the artifact, without `..`"));
    }
    remote::patterns(&config.files).map(drop).map_err(|message| ConfigIssue::new("files", message))
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
    let usual = if config.source == "builtin:tiny-siglip" { tiny::SIGLIP } else { tiny::LANGUAGE };
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
