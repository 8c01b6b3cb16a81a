//! Digests of the user's files. A file is not read again while its stamp is unchanged, if its file system keeps change times.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use imp_stages::contract::paths::is_clutter;

use super::{
    Digest, Index,
    error::{Result, StoreError},
    stamp::{self, Stamp},
    tree::{self, Tree, TreeFile},
};

/// The digest of a file, or of the tree below a folder.
///
/// # Errors
/// On faults of the user's files, as [`StoreError::Source`].
pub(crate) fn digest(path: &Path, index: &Index) -> Result<Digest> {
    digest_of(path, index).map_err(|error| match error {
        StoreError::Io { path, source } => fault(path, &source),
        StoreError::Refused { path, what } => StoreError::Source { path, what, help: "correct the source" },
        other => other,
    })
}

/// Explains why a file of the user can't be read.
fn fault(path: PathBuf, error: &io::Error) -> StoreError {
    let (what, help) = match error.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => {
            ("this link points to nothing".into(), "remove the link, or restore its target")
        }
        io::ErrorKind::PermissionDenied => ("you may not read this".into(), "change its permissions, or leave it out"),
        _ => (error.to_string(), "correct the source, then run the same command again"),
    };
    StoreError::Source { path, what, help }
}

fn digest_of(path: &Path, index: &Index) -> Result<Digest> {
    if path.is_dir() {
        let mut files = tree::list_but(path, is_clutter)?
            .into_iter()
            .map(|relative| {
                let (digest, size) = file(&path.join(&relative), index)?;
                Ok(TreeFile { path: relative, size, digest })
            })
            .collect::<Result<Vec<_>>>()?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Tree(files).reference().digest)
    } else {
        // A stage may copy the file under its name.
        if let (Some(folder), Some(name)) = (path.parent(), path.file_name()) {
            tree::portable_name(folder, Path::new(name))?;
        }
        file(path, index).map(|(digest, _)| digest)
    }
}

fn file(path: &Path, index: &Index) -> Result<(Digest, u64)> {
    let metadata = path.metadata().map_err(StoreError::io(path))?;
    let stamp = Stamp::of(&metadata);
    let reliable = stamp::is_reliable(path);
    if let Some(digest) = index.file_digest(path, stamp).filter(|_| reliable) {
        return Ok((digest, stamp.size));
    }
    let now = SystemTime::now();
    let (digest, size) = tree::hash_file(path)?;
    if reliable && stamp.is_settled(now) {
        index.set_file_digest(path, stamp, digest);
    }
    Ok((digest, size))
}
