//! The kind `download`: fetches data and models from a hub, a web server, an object store, the user's disk or a built-in
//! generator. Independent of what other stages do with them.

mod arrived;
mod config;
mod folder;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gguf;
mod remote;
mod shapes;
#[cfg(test)]
mod tests;
mod tiny;

use std::fs;

use imp_model::config::{Encoder, Family};

pub use self::config::{DownloadConfig, ModelOptions};
use self::{
    gguf::{convert, is_gguf, outlook_of},
    remote::{archive::Format, hub::HubSource},
};
use crate::{
    Job, Stage, StageError,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast, Outlook},
        input::Input,
        keys::{Key, Keys, with_table},
        paths::stays_inside,
        secret::HIDDEN,
        stage::ConfigIssue,
    },
    net::{http::Policy, patterns::patterns, s3::S3Source, verify::verify},
};

/// The kind `download`.
#[derive(Debug)]
pub struct Download;

/// A parsed `source`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source<'a> {
    Path(&'a str),
    Hub(HubSource),
    Url(&'a str),
    S3(S3Source),
    Shapes,
    TinyLanguage(Family),
    TinyVision(Encoder),
}

const BUILTINS: &str = "`builtin:shapes`, `builtin:tiny-phi`, `builtin:tiny-qwen2`, `builtin:tiny-phi3`, `builtin:tiny-siglip`, \
                        `builtin:tiny-clip`, `builtin:tiny-dinov2`";

const ARCHIVES: &str = ".zip, .tar, .tar.gz, .tar.zst and .tar.xz files";

impl<'a> Source<'a> {
    /// Parses the value of `source`. Whether a local path exists is checked later.
    fn parse(text: &'a str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text.trim().is_empty() => Err("must name a file, a folder, a URL or a built-in source".into()),
            Some(("builtin", "shapes")) => Ok(Self::Shapes),
            Some(("builtin", "tiny-phi")) => Ok(Self::TinyLanguage(Family::Phi)),
            Some(("builtin", "tiny-qwen2")) => Ok(Self::TinyLanguage(Family::Qwen2)),
            Some(("builtin", "tiny-phi3")) => Ok(Self::TinyLanguage(Family::Phi3)),
            Some(("builtin", "tiny-siglip")) => Ok(Self::TinyVision(Encoder::Siglip)),
            Some(("builtin", "tiny-clip")) => Ok(Self::TinyVision(Encoder::Clip)),
            Some(("builtin", "tiny-dinov2")) => Ok(Self::TinyVision(Encoder::Dinov2)),
            Some(("builtin", other)) => {
                Err(format!("is `builtin:{other}`, which is not a built-in source; choose one of {BUILTINS}"))
            }
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

impl Stage for Download {
    const KIND: &'static str = "download";
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "fetches data or a model from a hub, a server, the disk or a built-in generator";
    const INPUTS: &'static [Input] = &[];
    const FIGURES: &'static [Figure] = &[
        Figure::count("files", "files"),
        Figure::count("files_from_local_cache", "files"),
        Figure::count("unpacked_files", "files"),
        Figure::count("bytes", "bytes"),
        Figure::count("unpacked_bytes", "bytes"),
        Figure::count("images", "images"),
        Figure::count("eval_images", "images"),
    ];
    type Config = DownloadConfig;

    fn keys() -> Vec<Key> {
        let keys = DownloadConfig::keys(&serde_json::json!({"source": ""}));
        with_table(keys, "model", ModelOptions::keys(&serde_json::json!({})))
    }

    fn cpus(config: &DownloadConfig) -> usize {
        // A download mostly waits for the network, so one thread is enough.
        usize::from(matches!(Source::parse(&config.source), Ok(Source::Hub(_) | Source::S3(_) | Source::Url(_))))
    }

    fn check(config: &DownloadConfig) -> Result<(), ConfigIssue> {
        let source = Source::parse(&config.source).map_err(|message| ConfigIssue::new("source", message))?;
        let only = |key: &str, given: bool, applies: bool, to: &str| {
            if given && !applies { Err(ConfigIssue::new(key, format!("applies only to {to}"))) } else { Ok(()) }
        };
        let (shapes, vision) = (source == Source::Shapes, matches!(source, Source::TinyVision(_)));
        let language = matches!(source, Source::TinyLanguage(_));
        only("images", config.images.is_some(), shapes, "`builtin:shapes`")?;
        only("eval_images", config.eval_images.is_some(), shapes, "`builtin:shapes`")?;
        only("model", config.model.is_some(), language || vision, "`builtin:tiny-...`")?;
        let model = config.model.clone().unwrap_or_default();
        only("model.vocab_size", model.vocab_size.is_some(), language, "the language models of `builtin:tiny-...`")?;
        only("model.image_size", model.image_size.is_some(), vision, "the vision encoders of `builtin:tiny-...`")?;
        only("model.patch_size", model.patch_size.is_some(), vision, "the vision encoders of `builtin:tiny-...`")?;
        let path = matches!(source, Source::Path(_));
        let many = matches!(source, Source::Hub(_) | Source::S3(_));
        let remote = many || matches!(source, Source::Url(_));
        let hashed = path || matches!(source, Source::Url(_) | Source::S3(_));
        only("files", !config.files.is_empty(), many, "`hf://` and `s3://` sources")?;
        let single = "a single file; files from a hub are always checked against the hub's own hashes";
        only("sha256", config.sha256.is_some(), hashed, single)?;
        only("blake3", config.blake3.is_some(), hashed, single)?;
        only("unpack", config.unpack.is_some(), remote || path, "sources that are not built in")?;
        only("into", config.into.is_some(), remote || path, "sources that are not built in")?;
        let archive = match source {
            Source::Url(url) => remote::name_of(url).is_some_and(|name| Format::of(name).is_some()),
            _ => true,
        };
        only("unpack", config.unpack == Some(true), archive, ARCHIVES)?;
        check_texts(config)?;
        check_ranges(&source, config, &model)
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
            // Other stages look for a model at the top of the folder, not below `into`.
            Ok(Source::Path(path)) => match ahead.sources.get(path).filter(|_| config.into.is_none()) {
                Some(source) => outlook_of(source),
                None => Outlook::default(),
            },
            Ok(Source::TinyLanguage(family)) => tiny::language_outlook(family, &model),
            Ok(Source::TinyVision(encoder)) => tiny::vision_outlook(encoder, &model),
            Ok(Source::Hub(source)) => {
                let forecast = remote::forecast::hub(source, config.files.clone());
                return if config.into.is_none() { forecast } else { forecast.without_outlook() };
            }
            Ok(Source::Url(url)) => return remote::forecast::url(url),
            Ok(Source::S3(source)) => return remote::forecast::s3(source, config.files.clone()),
            Ok(Source::Shapes) | Err(_) => Outlook::default(),
        };
        Forecast { outlook, ..Forecast::default() }
    }

    fn run(config: &DownloadConfig, job: &Job) -> Result<(), StageError> {
        let model = config.model.clone().unwrap_or_default();
        let source = Source::parse(&config.source)
            .map_err(|message| StageError::failed(format!("`source` {message}"), "correct `source` in the pipeline"))?;
        let is_built_in = matches!(source, Source::Shapes | Source::TinyLanguage(_) | Source::TinyVision(_));
        match source {
            Source::Path(path) => from_disk(job, path, config),
            Source::Hub(source) => remote::hub(job, &source, config, &Policy::of_this_machine()?),
            Source::Url(url) => remote::url(job, url, config, &Policy::of_this_machine()?),
            Source::S3(source) => remote::s3(job, &source, config, &Policy::of_this_machine()?),
            Source::Shapes => shapes::write(job, config.images.unwrap_or(1200), config.eval_images.unwrap_or(160)),
            Source::TinyLanguage(family) => tiny::write_language(job, family, &model),
            Source::TinyVision(encoder) => tiny::write_vision(job, encoder, &model),
        }?;
        if is_built_in { Ok(()) } else { arrived::check(job, &job.output(), config.into.as_deref()) }
    }
}

/// Copies, unpacks or converts a file or folder on the user's disk.
fn from_disk(job: &Job, written: &str, config: &DownloadConfig) -> Result<(), StageError> {
    let path = job.source(written)?;
    let checks = config.checks();
    if !checks.is_empty() && path.is_dir() {
        let help = "remove `sha256` and `blake3`: the content of a folder is part of the cache key in any case";
        return Err(StageError::input(path, "this is a folder, but a hash covers a single file", help));
    }
    // `folder::copy` reports a missing path.
    if path.is_file() {
        let help = "the file is damaged or not the intended one: replace it, or correct the hash";
        verify(path, &checks).map_err(|message| StageError::input(path, message, help))?;
    }
    if config.unpack == Some(true) && path.is_file() && Format::of(written).is_none() {
        let help = format!("`unpack` applies to {ARCHIVES}: give one, or remove `unpack`");
        return Err(StageError::input(path, "this is not an archive", help));
    }
    if is_gguf(path) && path.is_file() {
        let folder = config.folder(job);
        fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
        return convert(job, path, path, &folder);
    }
    folder::copy(job, path, config)
}

fn check_texts(config: &DownloadConfig) -> Result<(), ConfigIssue> {
    if config.source.contains(HIDDEN) {
        let what = "was stored without its password or token: run the pipeline file instead, or set the whole address";
        return Err(ConfigIssue::new("source", what));
    }
    for (key, hash) in [("sha256", &config.sha256), ("blake3", &config.blake3)] {
        let is_hash = |hash: &String| hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hash.as_ref().is_some_and(|hash| !is_hash(hash)) {
            return Err(ConfigIssue::new(key, "must be 64 hexadecimal digits"));
        }
    }
    if config.into.as_ref().is_some_and(|into| into.is_empty() || !stays_inside(into)) {
        return Err(ConfigIssue::new("into", "must be a path inside the artifact, without `..`"));
    }
    patterns(&config.files).map(drop).map_err(|message| ConfigIssue::new("files", message))
}

fn check_ranges(source: &Source<'_>, config: &DownloadConfig, model: &ModelOptions) -> Result<(), ConfigIssue> {
    let ranges = [
        ("images", config.images, 1, 200_000),
        ("eval_images", config.eval_images, 1, 200_000),
        ("model.hidden_size", model.hidden_size, 8, 8192),
        ("model.layers", model.layers, 1, 128),
        ("model.heads", model.heads, 1, 128),
        // The 256 byte tokens and the special tokens are always included.
        ("model.vocab_size", model.vocab_size, 300, 65_536),
        ("model.image_size", model.image_size, 16, 1024),
        ("model.patch_size", model.patch_size, 2, 128),
    ];
    for (key, value, least, most) in ranges {
        if value.is_some_and(|value| !(least..=most).contains(&value)) {
            return Err(ConfigIssue::new(key, format!("must be between {least} and {most}")));
        }
    }
    let defaults = if matches!(source, Source::TinyVision(_)) { tiny::VISION } else { tiny::LANGUAGE };
    let (hidden, heads) = (model.hidden_size.unwrap_or(defaults.hidden_size), model.heads.unwrap_or(defaults.heads));
    if hidden % (4 * heads) != 0 {
        // Half of each head is rotated, in pairs of dimensions.
        return Err(ConfigIssue::new("model.hidden_size", format!("must be a multiple of {} (4 x heads)", 4 * heads)));
    }
    if model.patch_size.unwrap_or(tiny::PATCH_SIZE) > model.image_size.unwrap_or(tiny::IMAGE_SIZE) {
        return Err(ConfigIssue::new("model.patch_size", "must not be larger than image_size"));
    }
    Ok(())
}
