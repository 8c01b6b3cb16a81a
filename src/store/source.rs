//! Digests of the user's files. A file is not read again while its size, modification time and inode are unchanged. These only
//! save time: they are never part of a key.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use imp_stages::contract::paths::is_clutter;

use super::{
    Digest, Index,
    error::{Result, StoreError},
    index::Stamp,
    tree::{self, Tree, TreeFile},
};

/// The digest of a file, or of the tree below a folder.
pub(crate) fn digest(path: &Path, index: &Index) -> Result<Digest> {
    if path.is_dir() {
        let mut files = tree::list(path)?
            .into_iter()
            .filter(|relative| !is_clutter(Path::new(relative)))
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
    if let Some(digest) = index.file_digest(path, stamp) {
        return Ok((digest, stamp.size));
    }
    let (digest, size) = tree::hash_file(path)?;
    // A file that was just written may change again without a change of its modification time, since clocks are coarse.
    let is_old_enough = metadata
        .modified()
        .is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > Duration::from_secs(2)));
    if is_old_enough {
        index.set_file_digest(path, stamp, digest);
    }
    Ok((digest, size))
}

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        let modified =
            metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_nanos());
        Self { size: metadata.len(), modified, inode: metadata.ino() }
    }
}
