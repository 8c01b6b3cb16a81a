//! The content of a folder as a sorted list of its files, with sizes and digests. Independent of stages.

use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    error::{Result, StoreError},
};

/// A file in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeFile {
    /// Relative to the folder, with `/` as separator.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// The files of a folder, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree(pub(super) Vec<TreeFile>);

/// A tree by digest, with the number and total size of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeRef {
    /// BLAKE3 of the listing.
    pub(crate) digest: Digest,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Tree {
    /// Reads and hashes every file below `folder`, on all cores.
    ///
    /// # Errors
    /// On anything that is neither a file nor a folder, and on names that are not UTF-8.
    pub(super) fn hash(folder: &Path) -> Result<Self> {
        let mut files = list(folder)?
            .into_par_iter()
            .map(|path| {
                let full = folder.join(&path);
                let (digest, size) = hash_file(&full)?;
                Ok(TreeFile { path, size, digest })
            })
            .collect::<Result<Vec<_>>>()?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(files))
    }

    /// One line per file: `digest size path`.
    pub(super) fn listing(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for file in &self.0 {
            let _ = writeln!(text, "{} {} {}", file.digest, file.size, file.path);
        }
        text
    }

    /// Reads a listing. `None` if it is not valid.
    pub(super) fn parse(listing: &str) -> Option<Self> {
        listing
            .lines()
            .map(|line| {
                let mut parts = line.splitn(3, ' ');
                let digest = Digest::from_hex(parts.next()?)?;
                let size = parts.next()?.parse().ok()?;
                Some(TreeFile { path: parts.next()?.into(), size, digest })
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    pub(super) fn reference(&self) -> TreeRef {
        TreeRef {
            digest: Digest::of(self.listing().as_bytes()),
            files: self.0.len() as u64,
            bytes: self.0.iter().map(|file| file.size).sum(),
        }
    }
}

/// The relative paths of all files below `folder`. Links are followed, so a folder of links is valid data.
pub(super) fn list(folder: &Path) -> Result<Vec<String>> {
    let refused = |path: &Path, what: &str| StoreError::Refused { path: path.to_path_buf(), what: what.into() };
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true) {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_path_buf();
            StoreError::Refused { path, what: error.to_string() }
        })?;
        if entry.file_type().is_dir() {
            continue;
        }
        if !entry.file_type().is_file() {
            return Err(refused(entry.path(), "this is neither a file nor a folder"));
        }
        let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
        match relative.to_str() {
            Some(name) if !name.contains('\n') => files.push(name.to_string()),
            _ => return Err(refused(entry.path(), "the name must be UTF-8 without line breaks")),
        }
    }
    Ok(files)
}

/// The digest and size of a file.
pub(super) fn hash_file(path: &Path) -> Result<(Digest, u64)> {
    /// Files of at least this size are hashed on all cores.
    const LARGE: u64 = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    let size = path.metadata().map_err(StoreError::io(path))?.len();
    if size >= LARGE { hasher.update_mmap_rayon(path) } else { hasher.update_mmap(path) }
        .map_err(StoreError::io(path))?;
    let size = hasher.count();
    Ok((hasher.finalize().into(), size))
}
