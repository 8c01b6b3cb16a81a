//! The local cache of Hugging Face's own tools (`~/.cache/huggingface/hub`), which is read and never written.
//! Independent of the network.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::hub::HubSource;
use crate::{
    Job, StageError,
    net::{
        hub::Hub,
        listing::{Commit, Listing, RemoteFile, is_safe_name},
        patterns::Patterns,
        verify::{Check, verify},
    },
};

/// The file's path in the cache, if its content there has the right size and hashes.
pub(super) fn find(hub: &Hub, source: &HubSource, commit: &Commit, file: &RemoteFile) -> Option<PathBuf> {
    if !is_safe_name(&file.name) {
        return None;
    }
    let path = hub.cache.join(source.folder()).join("snapshots").join(commit.as_str()).join(&file.name);
    let bytes = fs::metadata(&path).ok()?.len();
    let same = file.size.is_none_or(|size| size == bytes) && verify(&path, &file.checks).is_ok();
    same.then_some(path)
}

/// Compares files of the cache with the hashes that the names of their blobs are: SHA-256, or git's id. Returns whether all
/// have such a name.
///
/// # Errors
/// If a file is damaged or incomplete.
pub(super) fn check(job: &Job, local: &[(String, PathBuf)]) -> Result<bool, StageError> {
    let mut all = true;
    for (_, path) in local {
        job.check_cancelled()?;
        let help = "delete it, unset HF_HUB_OFFLINE and run the same command again";
        let blob = fs::canonicalize(path).map_err(|error| {
            StageError::input(path, format!("this link of the local cache leads nowhere: {error}"), help)
        })?;
        let name = blob.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let check = match name.len() {
            _ if !path.is_symlink() || !name.bytes().all(|byte| byte.is_ascii_hexdigit()) => None,
            64 => Some(Check::Sha256(name)),
            40 => Some(Check::GitBlob(name)),
            _ => None,
        };
        match check {
            None => all = false,
            Some(check) => verify(&blob, &[check]).map_err(|message| {
                StageError::input(
                    path,
                    format!("this file of the local cache is damaged or incomplete: {message}"),
                    help,
                )
            })?,
        }
    }
    Ok(all)
}

/// Lists the files of the cached snapshot that match `wanted`, for work without a network.
pub(super) fn list(hub: &Hub, source: &HubSource, wanted: &Patterns) -> Result<Listing, StageError> {
    let folder = hub.cache.join(source.folder());
    let absent = || {
        StageError::failed(
            format!("{source} is not in {}, and HF_HUB_OFFLINE is set", folder.display()),
            "unset HF_HUB_OFFLINE to download it",
        )
    };
    let file = folder.join("refs").join(source.revision());
    let named = if is_safe_name(source.revision()) { fs::read_to_string(&file).ok() } else { None };
    let commit = match named {
        Some(text) => Commit::try_from(text.trim().to_string()).map_err(|what| {
            StageError::input(
                &file,
                format!("names the commit as {what}"),
                "delete the file, unset HF_HUB_OFFLINE and run the same command again",
            )
        })?,
        None => Commit::try_from(source.revision().to_string()).map_err(|_| absent())?,
    };
    let snapshot = folder.join("snapshots").join(commit.as_str());
    let mut local = Vec::new();
    collect(&snapshot, &snapshot, &mut local).map_err(StageError::io(&snapshot))?;
    if local.is_empty() {
        return Err(absent());
    }
    local.sort();
    let names: Vec<String> = local.iter().map(|(name, _)| name.clone()).collect();
    wanted.all_used(&names, &format_args!("{source} in {}", snapshot.display()))?;
    local.retain(|(name, _)| wanted.matches(name));
    Ok(Listing { files: Vec::new(), commit: Some(commit), local })
}

fn collect(root: &Path, folder: &Path, into: &mut Vec<(String, PathBuf)>) -> std::io::Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, into)?;
        } else if let Ok(name) = path.strip_prefix(root) {
            into.push((name.to_string_lossy().into_owned(), path));
        }
    }
    Ok(())
}
