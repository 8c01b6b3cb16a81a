//! Sources on other machines: downloads what they list, verifies it and puts it into the output. Independent of what the
//! files mean, except that archives are unpacked and GGUF models converted.

pub(super) mod archive;
mod cache;
pub(super) mod forecast;
pub(super) mod hub;
#[cfg(test)]
mod server;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use imp_model::weights::is_weights;

use self::{
    archive::{Unpacked, unpack},
    hub::HubSource,
};
use super::{
    config::DownloadConfig,
    gguf::{convert, is_gguf},
};
use crate::{
    Job, StageError,
    net::{
        http::{Access, Client, Policy},
        hub::Hub,
        listing::{Listing, RemoteFile, is_safe_name, quoted},
        s3::{S3Source, Store},
        transfer,
    },
};

/// Downloads a repository from a hub.
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
    let saved = job.checkpoint().join("listing.json");
    let known = fs::read(&saved).ok().and_then(|text| serde_json::from_slice::<(String, Listing)>(&text).ok());
    // Its addresses are those of one hub.
    let known = known.filter(|(endpoint, _)| *endpoint == hub.endpoint && !hub.offline);
    let listing = if let Some((_, listing)) = known {
        listing
    } else {
        let listing = source.list(hub, &config.files, &client, job)?;
        if listing.local.is_empty() {
            let text = serde_json::to_vec(&(&hub.endpoint, &listing)).unwrap_or_default();
            fs::write(&saved, text).map_err(StageError::io(&saved))?;
        }
        listing
    };
    if let Some(commit) = listing.commit.as_ref().filter(|commit| source.revision() != commit.as_str()) {
        job.warn(format!("{source} is at commit {commit} now; `source = \"{}\"` pins it", source.pinned(commit)));
    }
    if !listing.local.is_empty() {
        check_local(job, source, &listing.local, config)?;
    }
    let (mut cached, mut missing) = (listing.local, Vec::new());
    for file in listing.files {
        match listing.commit.as_ref().and_then(|commit| cache::find(hub, source, commit, &file)) {
            Some(path) => cached.push((file.name, path)),
            None => missing.push(file),
        }
    }
    collect(job, client, &cached, missing, config)
}

/// Checks files that were found without the hub's list. Only names that the pipeline spells out are known to be all of them.
fn check_local(
    job: &Job,
    source: &HubSource,
    local: &[(String, PathBuf)],
    config: &DownloadConfig,
) -> Result<(), StageError> {
    let hashed = cache::check(job, local)?;
    let spelled =
        !config.files.is_empty() && config.files.iter().all(|name| local.iter().any(|(found, _)| found == name));
    let what = match (hashed, spelled) {
        (true, true) => return Ok(()),
        (true, false) => "whether these are all of its files",
        (false, _) => "whether its files are whole and all of them",
    };
    job.unchecked(format!(
        "{source} is taken from the local cache without the hub's list of files (HF_HUB_OFFLINE), so it could not be checked \
         {what}: it is used in this run, and fetched again in the next. Names in `files` make sure that there is nothing else"
    ));
    Ok(())
}

/// Downloads one file from a web server.
pub(super) fn url(job: &Job, url: &str, config: &DownloadConfig, policy: &Policy) -> Result<(), StageError> {
    let client = Client::new(policy.clone(), Access::Open);
    let file = RemoteFile { checks: config.checks(), ..RemoteFile::new(name_of(url).unwrap_or("file"), url.into()) };
    collect(job, client, &[], vec![file], config)
}

/// Downloads an object, or a folder of objects, from an object store.
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
            let message = format!("{source} holds {} objects, but a hash covers a single one", files.len());
            return Err(StageError::failed(message, "remove `sha256` and `blake3`, or name one object in `files`"));
        }
    }
    collect(job, client, &[], listing.files, config)
}

/// The file name in a URL.
pub(super) fn name_of(url: &str) -> Option<&str> {
    let path = url.split(['?', '#']).next()?.split_once("://")?.1;
    let name = path.split_once('/')?.1.rsplit('/').next()?;
    Some(name).filter(|name| !name.is_empty() && *name != ".." && *name != ".")
}

/// Copies the `cached` files, downloads the `missing` ones, and puts all of them into the output.
fn collect(
    job: &Job,
    client: Client,
    cached: &[(String, PathBuf)],
    missing: Vec<RemoteFile>,
    config: &DownloadConfig,
) -> Result<(), StageError> {
    let names: Vec<&str> =
        cached.iter().map(|(name, _)| name).chain(missing.iter().map(|file| &file.name)).map(String::as_str).collect();
    if let Some(name) = names.iter().find(|name| !is_safe_name(name)) {
        return Err(StageError::failed(
            format!("the source lists a file outside its folder: {}", quoted(name)),
            "do not use this source",
        ));
    }
    // Before hours of downloading, not after.
    check_names(&names)?;
    let model = gguf_among(&names)?;
    job.result("files", names.len() as f64);
    if !cached.is_empty() {
        job.result("files_from_local_cache", cached.len() as f64);
    }
    let mut unpacked = Unpacked::default();
    for (number, (name, path)) in cached.iter().enumerate() {
        job.check_cancelled()?;
        let part = job.checkpoint().join(format!("copy-{number}.part"));
        fs::copy(path, &part).map_err(StageError::io(path))?;
        unpacked.add(&put(job, &part, name, model.as_deref(), config)?);
    }
    let mut fetched = transfer::fetch(job, client, missing)?;
    // What is only moved comes last: when what takes longer is stopped, it is still there.
    fetched.sort_by_key(|(file, _)| config.archive(&file.name).is_none() && model.as_ref() != Some(&file.name));
    for (file, part) in fetched {
        let done = put(job, &part, &file.name, model.as_deref(), config);
        if matches!(done, Err(StageError::Failed { .. } | StageError::Input { .. })) && file.checks.is_empty() {
            // Nothing says that it arrived as it was: the next run fetches it again.
            transfer::forget(&part);
        }
        unpacked.add(&done?);
    }
    unpacked.report(job);
    Ok(())
}

/// Refuses names that can't be those of files in one folder, or that a listing can't hold.
fn check_names(names: &[&str]) -> Result<(), StageError> {
    let refused = |name: &str, why: &str| {
        let message = format!("the source lists a file named {}, which {why}", quoted(name));
        Err(StageError::failed(message, "leave it out with `files`, or do not use this source"))
    };
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    if let Some(name) = sorted.iter().find(|name| name.contains(char::is_control)) {
        return refused(name, "contains control characters");
    }
    if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        return refused(pair[0], "is the name of two files");
    }
    let files: HashSet<&str> = sorted.iter().copied().collect();
    let is_folder = |name: &&&str| name.match_indices('/').any(|(at, _)| files.contains(&name[..at]));
    match sorted.iter().find(is_folder) {
        Some(name) => refused(name, "lies in what is another file"),
        None => Ok(()),
    }
}

/// The GGUF file to convert to a model folder, if there is one.
fn gguf_among(names: &[&str]) -> Result<Option<String>, StageError> {
    let models: Vec<_> = names.iter().filter(|name| is_gguf(Path::new(name))).collect();
    match models[..] {
        // The repository also has the weights in the usual format.
        _ if names.iter().any(|name| is_weights(name) && !is_gguf(Path::new(name))) => Ok(None),
        [] => Ok(None),
        [only] => Ok(Some((*only).into())),
        [first, second, ..] => Err(StageError::failed(
            format!("the source holds several GGUF models, such as {first} and {second}"),
            format!("choose one: `files = [\"{first}\"]`"),
        )),
    }
}

/// Moves a complete file into the output. An archive is unpacked there, and the file named `model` is converted.
fn put(
    job: &Job,
    part: &Path,
    name: &str,
    model: Option<&str>,
    config: &DownloadConfig,
) -> Result<Unpacked, StageError> {
    let folder = config.folder(job);
    if model == Some(name) {
        fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
        return convert(job, part, Path::new(name), &folder).map(|()| Unpacked::default());
    }
    let target = folder.join(name);
    let parent = target.parent().unwrap_or(&folder);
    fs::create_dir_all(parent).map_err(StageError::io(parent))?;
    if let Some(format) = config.archive(name) {
        // The archive is kept until the stage ends, so that a stage killed here can unpack it again.
        return unpack(job, part, name, format, parent);
    }
    check_free(&target, name)?;
    let relative = target.strip_prefix(job.output()).unwrap_or(&target);
    job.move_into_output(part, relative)?;
    Ok(Unpacked::default())
}

/// Refuses to replace what an archive of the same source held.
pub(super) fn check_free(target: &Path, name: &str) -> Result<(), StageError> {
    if target.exists() {
        let help = "set `unpack = false` to keep archives as they are";
        return Err(StageError::failed(
            format!("an archive of the source also holds a file named {}", quoted(name)),
            help,
        ));
    }
    Ok(())
}
