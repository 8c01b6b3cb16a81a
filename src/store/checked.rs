//! What was last found to be in order: the stamps of a tree's folders and files. Derived: without them, a tree is read again.
//! Independent of what "in order" means.
//!
//! Folders and files are recorded apart, because every hit asks for the folders, which are few, and only a stage that starts asks
//! for the files of its inputs.

use std::{
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use serde::{Serialize, de::DeserializeOwned};

use super::{Digest, Store, disk, error::Result, files::read, stamp::Stamp};

/// The folders of a tree, by relative path, with their stamps.
pub(super) type Folders = Vec<(String, Stamp)>;

/// The subfolders of the store with the records.
pub(super) const FOLDERS: &str = "stamps/folders";
pub(super) const FILES: &str = "stamps/files";
pub(super) const INTACT: &str = "stamps/intact";

/// How often to wait for the next tick of the file system's clock, and how long. The clock of Linux ticks every 1 to 10 ms.
const TICKS: u32 = 8;
const TICK: Duration = Duration::from_millis(3);

impl Store {
    /// Whether the folders of a tree are as they were when it was last checked: since then no entry was added, removed or replaced.
    pub(super) fn has_same_folders(&self, tree: Digest) -> bool {
        let folder = self.path("trees", tree);
        let Some(known) = self.read_record::<Folders>(FOLDERS, tree) else { return false };
        known.iter().all(|(name, stamp)| Stamp::at(&folder.join(name)) == Some(*stamp))
    }

    /// The folders of a tree with their stamps, as they were when it was last checked.
    pub(crate) fn folders_of_tree(&self, tree: Digest) -> Option<Vec<(PathBuf, Stamp)>> {
        let folder = self.path("trees", tree);
        let known = self.read_record::<Folders>(FOLDERS, tree)?;
        Some(known.into_iter().map(|(name, stamp)| (folder.join(name), stamp)).collect())
    }

    /// The stamps of a tree's files when they were last found to have the right content, in the order of the listing.
    pub(super) fn known_files(&self, tree: Digest) -> Option<Vec<Stamp>> {
        self.read_record(FILES, tree)
    }

    /// The last time at which a tree was known to be intact, in seconds since 1970.
    pub(super) fn known_intact(&self, tree: Digest) -> Option<u64> {
        self.read_record(INTACT, tree)
    }

    pub(super) fn set_folders(&self, tree: Digest, folders: &Folders) -> Result<()> {
        self.record(FOLDERS, tree, folders, &folders.iter().map(|(_, stamp)| stamp))
    }

    pub(super) fn set_files(&self, tree: Digest, files: &Vec<Stamp>) -> Result<()> {
        self.record(FILES, tree, files, &files.iter())
    }

    pub(super) fn set_intact(&self, tree: Digest, at: u64) -> Result<()> {
        if self.known_intact(tree) == Some(at) {
            return Ok(());
        }
        self.record(INTACT, tree, &at, &std::iter::empty())
    }

    /// Forgets everything about a tree.
    pub(super) fn forget_checks(&self, tree: Digest) {
        for kind in [FOLDERS, FILES, INTACT] {
            // Without the record, or with a wrong one, the files are read again.
            let _ = disk::remove_file(&self.path(kind, tree));
        }
    }

    fn read_record<T: DeserializeOwned>(&self, kind: &str, tree: Digest) -> Option<T> {
        postcard::from_bytes(&read(&self.path(kind, tree)).ok()?).ok()
    }

    /// Writes a record, unless something could still change within the same tick of the clock as one of its `stamps`, and so go
    /// unnoticed. Then there is no record.
    fn record<'a>(
        &self,
        kind: &str,
        tree: Digest,
        record: &impl Serialize,
        stamps: &(impl Iterator<Item = &'a Stamp> + Clone),
    ) -> Result<()> {
        let path = self.path(kind, tree);
        let Ok(bytes) = postcard::to_allocvec(record) else { return Ok(()) };
        if !self.outlives_tick(stamps)? {
            return super::files::remove_all(&path);
        }
        self.write_derived(&path, &bytes)
    }

    /// Waits for a time later than all `stamps`, by the clock of the store's file system. False if it does not come soon, as on
    /// file systems that count seconds.
    fn outlives_tick<'a>(&self, stamps: &(impl Iterator<Item = &'a Stamp> + Clone)) -> Result<bool> {
        if stamps.clone().next().is_none() {
            return Ok(true);
        }
        #[cfg(test)]
        if disk::turns::takes_part() {
            // Thousands of runs can't wait for the clock.
            return Ok(false);
        }
        for _ in 0..TICKS {
            let probe = self.temporary()?;
            let now = probe.as_file().metadata().ok().as_ref().map(Stamp::of);
            if now.is_some_and(|now| stamps.clone().all(|stamp| stamp.is_before(&now))) {
                return Ok(true);
            }
            sleep(TICK);
        }
        Ok(false)
    }
}

/// The name of `path` below `folder`, with `/` as separator; empty for the folder itself.
pub(super) fn relative(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned()
}
