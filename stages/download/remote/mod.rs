//! Sources on other machines: what is listed there comes into the output, checked. Does not know what it is.

pub(super) mod ahead;
pub(super) mod archive;
mod cache;
pub(super) mod hub;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tests;

use std::{
    fs,
    path::{Path, PathBuf},
};

use self::{
    archive::{Format, unpack},
    hub::{Hub, HubSource},
};
use super::{
    config::DownloadConfig,
    gguf::{convert, is_gguf},
};
use crate::{
    Job, StageError,
    contract::paths::stays_inside,
    net::{
        http::{Access, Client, Policy},
        listing::{Listing, RemoteFile},
        s3::{S3Source, Store},
        transfer,
    },
};

/// Brings a repository of a hub.
pub(super) fn hub(job: &Job, source: &HubSource, config: &DownloadConfig, policy: &Policy) -> Result<(), StageError> {
    repository(job, &Hub::from_env(), source, config, policy)
}

fn repository(
    job: &Job,
    hub: &Hub,
    source: &HubSource,
    config: &DownloadConfig,
    policy: &Policy,
) -> Result<(), StageError> {
    let client = Client::new(policy.clone(), hub.access());
    let kept = job.checkpoint().join("listing.json");
    let known = fs::read(&kept).ok().and_then(|text| serde_json::from_slice::<Listing>(&text).ok());
    let listing = if let Some(listing) = known {
        listing
    } else {
        let listing = source.list(hub, &config.files, &client, job)?;
        if listing.local.is_empty() {
            let text = serde_json::to_vec(&listing).unwrap_or_default();
            fs::write(&kept, text).map_err(StageError::io(&kept))?;
        }
        listing
    };
    if let Some(commit) = listing.commit.as_deref().filter(|commit| source.revision() != *commit) {
        job.warn(format!("{source} is the commit {commit} now: `source = \"{}\"` pins it", source.pinned(commit)));
    }
    let (mut there, mut wanted) = (listing.local, Vec::new());
    for file in listing.files {
        match listing.commit.as_deref().and_then(|commit| cache::find(hub, source, commit, &file)) {
            Some(path) => there.push((file.name, path)),
            None => wanted.push(file),
        }
    }
    bring(job, client, &there, wanted, config)
}

/// Brings one file from a web server.
pub(super) fn url(job: &Job, url: &str, config: &DownloadConfig, policy: &Policy) -> Result<(), StageError> {
    let client = Client::new(policy.clone(), Access::Open);
    let file = RemoteFile { checks: config.checks(), ..RemoteFile::new(name_of(url).unwrap_or("file"), url.into()) };
    bring(job, client, &[], vec![file], config)
}

/// Brings an object of an object store, or a folder of them.
pub(super) fn s3(job: &Job, source: &S3Source, config: &DownloadConfig, policy: &Policy) -> Result<(), StageError> {
    objects(job, source, &Store::from_env(source)?, config, policy)
}

fn objects(
    job: &Job,
    source: &S3Source,
    store: &Store,
    config: &DownloadConfig,
    policy: &Policy,
) -> Result<(), StageError> {
    let client = Client::new(policy.clone(), Access::Signed(store.clone()));
    let mut listing = source.list(store, &config.files, &client, job)?;
    match (listing.files.as_mut_slice(), config.checks()) {
        (_, checks) if checks.is_empty() => {}
        ([file], checks) => file.checks = checks,
        (files, _) => {
            let message = format!("{source} is {} objects, and a hash is of one", files.len());
            return Err(StageError::failed(message, "leave `sha256` and `blake3` out, or name one object in `files`"));
        }
    }
    bring(job, client, &[], listing.files, config)
}

/// The file name in a URL.
pub(super) fn name_of(url: &str) -> Option<&str> {
    let path = url.split(['?', '#']).next()?.split_once("://")?.1;
    let name = path.split_once('/')?.1.rsplit('/').next()?;
    Some(name).filter(|name| !name.is_empty() && *name != ".." && *name != ".")
}

/// Copies files that are `there` already, and downloads the others.
fn bring(
    job: &Job,
    client: Client,
    there: &[(String, PathBuf)],
    wanted: Vec<RemoteFile>,
    config: &DownloadConfig,
) -> Result<(), StageError> {
    let names: Vec<&str> =
        there.iter().map(|(name, _)| name).chain(wanted.iter().map(|file| &file.name)).map(String::as_str).collect();
    if let Some(name) = names.iter().find(|name| !stays_inside(name)) {
        return Err(StageError::failed(
            format!("the source lists a file that would leave the folder: {name}"),
            "do not use this source",
        ));
    }
    let model = gguf_among(&names)?;
    job.result("files", names.len() as f64);
    if !there.is_empty() {
        job.result("files_from_local_cache", there.len() as f64);
    }
    for (name, path) in there {
        job.check_cancelled()?;
        let part = job.checkpoint().join("copy.part");
        fs::copy(path, &part).map_err(StageError::io(path))?;
        place(job, &part, name, model.as_deref(), config)?;
    }
    for (file, part) in transfer::fetch(job, client, wanted)? {
        place(job, &part, &file.name, model.as_deref(), config)?;
    }
    Ok(())
}

/// The file that becomes a folder like any other language model's, if there is one.
fn gguf_among(names: &[&str]) -> Result<Option<String>, StageError> {
    let models: Vec<_> = names.iter().filter(|name| is_gguf(Path::new(name))).collect();
    match models[..] {
        // Then the weights are there in the usual form, too.
        _ if names.iter().any(|name| name.ends_with(".safetensors")) => Ok(None),
        [] => Ok(None),
        [only] => Ok(Some((*only).into())),
        [first, second, ..] => Err(StageError::failed(
            format!("the source holds several models, such as {first} and {second}"),
            format!("name the one that you want: `files = [\"{first}\"]`"),
        )),
    }
}

/// Moves a whole file into the output, or unpacks it there. The one that is the `model` is converted.
fn place(job: &Job, part: &Path, name: &str, model: Option<&str>, config: &DownloadConfig) -> Result<(), StageError> {
    let folder = config.into.as_deref().map_or_else(|| job.output(), |into| job.output().join(into));
    if model == Some(name) {
        fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
        return convert(part, Path::new(name), &folder);
    }
    let target = folder.join(name);
    let parent = target.parent().unwrap_or(&folder);
    fs::create_dir_all(parent).map_err(StageError::io(parent))?;
    match Format::of(name).filter(|_| config.unpack.unwrap_or(true)) {
        // The archive itself stays until the stage is done: a stage that is killed here unpacks it again.
        Some(format) => unpack(job, part, name, format, parent),
        None => {
            fs::rename(part, &target).or_else(|_| fs::copy(part, &target).map(drop)).map_err(StageError::io(&target))
        }
    }
}
