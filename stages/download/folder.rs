//! Copies a file or folder of the user into the output. Independent of its content, except that archives are unpacked.

use std::{
    fs::{self, File, FileType},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    config::DownloadConfig,
    remote::{
        archive::{Unpacked, unpack},
        check_free,
    },
};
use crate::{
    Job, StageError,
    contract::{
        event::{BYTES, Progress},
        paths::{is_clutter, may_be_a_repository},
    },
};

/// Bytes copied between two checks for cancellation.
const PIECE: u64 = 64 << 20;
/// Deepest nesting of folders; anything deeper is treated as a cycle of links.
const MAX_DEPTH: usize = 64;

/// A file to copy.
struct Item {
    from: PathBuf,
    to: PathBuf,
    bytes: u64,
}

/// Copies the content of `source`. Archives are unpacked in their place.
pub(super) fn copy(job: &Job, source: &Path, config: &DownloadConfig) -> Result<(), StageError> {
    let items = items(job, source, &config.source)?;
    let total: u64 = items.iter().map(|item| item.bytes).sum();
    let (mut done, mut unpacked) = (0, Unpacked::default());
    for item in &items {
        let target = config.folder(job).join(&item.to);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(StageError::io(parent))?;
        }
        let name = item.to.to_string_lossy();
        if let (Some(format), Some(parent)) = (config.archive(&name), target.parent()) {
            unpacked.add(&unpack(job, &item.from, &name, format, parent)?);
            done += item.bytes;
            continue;
        }
        check_free(&target, &name)?;
        copy_file(job, item, &target, |bytes| {
            done += bytes;
            job.progress(Progress::new(done as usize, total as usize, BYTES));
        })?;
    }
    job.result("files", items.len() as f64);
    job.result("bytes", total as f64);
    unpacked.report(job);
    Ok(())
}

/// The files of `source`, which the pipeline file spells `as_written`.
fn items(job: &Job, source: &Path, as_written: &str) -> Result<Vec<Item>, StageError> {
    let meta = fs::metadata(source).map_err(|error| unreadable(source, as_written, error))?;
    let mut items = Vec::new();
    if meta.is_file() {
        let name = source.file_name().map(PathBuf::from).unwrap_or_default();
        items.push(Item { from: source.to_path_buf(), to: name, bytes: meta.len() });
    } else if meta.is_dir() {
        let mut left_out = Vec::new();
        list(job, source, Path::new(""), 0, &mut (&mut items, &mut left_out))?;
        if !left_out.is_empty() {
            let shown = left_out.iter().take(4).cloned().collect::<Vec<String>>().join(", ");
            let more = if left_out.len() > 4 { format!(" and {} more", left_out.len() - 4) } else { String::new() };
            job.warn(format!("{}: not taken over, since it is no content: {shown}{more}", source.display()));
        }
        if items.is_empty() {
            return Err(StageError::input(
                source,
                "the folder is empty",
                "give a folder that holds the data or the model",
            ));
        }
    } else {
        return Err(special(source, meta.file_type()));
    }
    Ok(items)
}

fn unreadable(source: &Path, as_written: &str, error: io::Error) -> StageError {
    if error.kind() != io::ErrorKind::NotFound {
        return StageError::Io { path: source.to_path_buf(), source: error };
    }
    let message = if source.is_symlink() { "this link points to nothing" } else { "no such file or folder" };
    let mut help =
        format!("check `source = \"{as_written}\"`: relative paths are resolved against the pipeline file's folder");
    if may_be_a_repository(as_written) {
        help = format!("{help}; a repository of the Hugging Face hub is written `hf://{as_written}`");
    }
    StageError::input(source, message, help)
}

/// Files to copy, and what is left out.
type Found<'a> = (&'a mut Vec<Item>, &'a mut Vec<String>);

/// Lists files in order of their names, following links.
fn list(job: &Job, folder: &Path, to: &Path, depth: usize, found: &mut Found<'_>) -> Result<(), StageError> {
    job.check_cancelled()?;
    if depth > MAX_DEPTH {
        return Err(StageError::input(
            folder,
            "folders are nested too deeply",
            "remove the link that points back to a folder above it",
        ));
    }
    let entries: io::Result<Vec<_>> = fs::read_dir(folder).and_then(Iterator::collect);
    let mut entries = entries.map_err(StageError::io(folder))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if is_clutter(&to) {
            found.1.push(to.display().to_string());
            continue;
        }
        let meta = fs::metadata(&from).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                StageError::input(&from, "this link points to nothing", "remove the link, or restore its target")
            }
            _ => StageError::Io { path: from.clone(), source: error },
        })?;
        if meta.is_dir() {
            list(job, &from, &to, depth + 1, found)?;
        } else if meta.is_file() {
            found.0.push(Item { from, to, bytes: meta.len() });
        } else {
            return Err(special(&from, meta.file_type()));
        }
    }
    Ok(())
}

fn special(path: &Path, kind: FileType) -> StageError {
    let message = format!("this is neither a file nor a folder ({kind:?})");
    StageError::input(path, message, "give a folder that holds only regular files and folders")
}

/// Copies a file in pieces, by a system call that can share blocks where the file system supports it.
fn copy_file(job: &Job, item: &Item, target: &Path, mut copied: impl FnMut(u64)) -> Result<(), StageError> {
    let from = File::open(&item.from).map_err(StageError::io(&item.from))?;
    let mut to = File::create(target).map_err(StageError::io(target))?;
    loop {
        job.check_cancelled()?;
        // The error may concern either file; the usual cause is a full disk.
        let bytes = io::copy(&mut (&from).take(PIECE), &mut to).map_err(StageError::io(target))?;
        copied(bytes);
        if bytes < PIECE {
            return Ok(());
        }
    }
}
