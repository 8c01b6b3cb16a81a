//! Whether what was fetched is what it seems to be, before stages spend hours on the way to it. Independent of the source.

use std::{fs, io::Read, path::Path};

use imp_model::weights::{is_weights, looks_like, missing_shards, unreadable_weights};

use crate::{Job, StageError};

/// The largest file that is looked into: pointers of Git LFS have some 130 bytes.
const LARGEST_POINTER: u64 = 1024;
/// Files beside the weights without which a model can't be used.
const NEEDED: [&str; 2] = ["tokenizer.json", "config.json"];
/// Deepest nesting of folders, as for copying.
const MAX_DEPTH: usize = 64;

/// Checks the files in `folder`, and the model in it or in its folder `into`.
pub(super) fn check(job: &Job, folder: &Path, into: Option<&str>) -> Result<(), StageError> {
    let model = into.map_or_else(|| folder.to_path_buf(), |into| folder.join(into));
    if let Some(message) = missing_shards(&model) {
        let help = "fetch the whole model: a copy or a pattern in `files` may have left files out";
        return Err(StageError::failed(format!("the model is incomplete: {message}"), help));
    }
    if let Some(message) = unreadable_weights(&model) {
        job.caution(format!("this model can't be read: {message}"));
    }
    let mut pointers = Vec::new();
    find_pointers(job, folder, folder, 0, &mut pointers)?;
    let Some(first) = pointers.first() else { return Ok(()) };
    let needed = pointers.iter().find(|name| {
        let own = name.rsplit('/').next().unwrap_or(name);
        is_weights(own) || NEEDED.iter().any(|end| name.ends_with(end))
    });
    let help = "run `git lfs pull` in the repository, or give its address on the hub as the source";
    if let Some(name) = needed {
        return Err(StageError::failed(format!("{name} is a pointer of Git LFS, which stands for the file"), help));
    }
    job.caution(format!(
        "{} file(s), such as {first}, are pointers of Git LFS, which stand for the files: {help}",
        pointers.len()
    ));
    Ok(())
}

fn find_pointers(
    job: &Job,
    root: &Path,
    folder: &Path,
    depth: usize,
    found: &mut Vec<String>,
) -> Result<(), StageError> {
    job.check_cancelled()?;
    let entries = fs::read_dir(folder).map_err(StageError::io(folder))?;
    for entry in entries {
        let path = entry.map_err(StageError::io(folder))?.path();
        let Ok(data) = fs::symlink_metadata(&path) else { continue };
        if data.is_dir() && depth < MAX_DEPTH {
            find_pointers(job, root, &path, depth + 1, found)?;
        } else if data.is_file() && (1..=LARGEST_POINTER).contains(&data.len()) && is_pointer(&path) {
            found.push(path.strip_prefix(root).unwrap_or(&path).display().to_string());
        }
    }
    found.sort();
    Ok(())
}

fn is_pointer(path: &Path) -> bool {
    let mut start = [0; 64];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut start));
    read.is_ok_and(|bytes| looks_like(&start[..bytes]).is_some_and(|what| what.contains("Git LFS")))
}
