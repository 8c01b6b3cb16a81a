//! Copies a tree out of the store, as files of their own: all of them or none. Independent of what the tree is.

use std::{
    ffi::OsString,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rayon::prelude::*;

use super::{
    Digest, Store,
    error::{Result, StoreError},
    files::remove_all,
    stamp::Stamp,
    tree::{Tree, TreeFile},
};

impl Store {
    /// Copies the files of `tree` into the new folder `to`, and reports the bytes that are done. The copies are read again before
    /// the folder gets its name. What an interrupted export leaves is a hidden folder beside `to`, which the next one removes.
    ///
    /// # Errors
    /// If `to` is there and not an empty folder, if another process exports to it now, or if a file of the tree is damaged.
    pub(crate) fn export(&self, tree: Digest, to: &Path, progress: impl Fn(u64) + Sync) -> Result<()> {
        let _guard = self.guard()?;
        let listing = self.tree(tree)?;
        let from = self.input_folder(tree)?.into_parts().0.ok_or_else(|| StoreError::Refused {
            path: self.tree_path(tree),
            what: "files of this result are lost: run the pipeline again".into(),
        })?;
        check_empty(to)?;
        let part = Part::begin(to)?;
        let done = AtomicU64::new(0);
        listing.par_iter().try_for_each(|file| {
            copy(&from.join(&file.path), &part.folder.join(&file.path))?;
            progress(done.fetch_add(file.size, Relaxed) + file.size);
            Ok(())
        })?;
        let copied = Tree::hash(&part.folder)?;
        if let Some(path) = first_difference(&listing, &copied.0) {
            let what = "its copy is not what the cache says: `imp-flow cache verify` finds damaged files; check both disks".into();
            return Err(StoreError::Refused { path: to.join(path), what });
        }
        part.finish(to)
    }
}

/// The path of the first file in which two trees differ.
fn first_difference<'a>(one: &'a [TreeFile], other: &'a [TreeFile]) -> Option<&'a str> {
    let differing = one.iter().zip(other).find(|(one, other)| one != other).map(|(one, _)| one);
    let more = one.get(other.len()).or_else(|| other.get(one.len()));
    differing.or(more).map(|file| file.path.as_str())
}

fn check_empty(to: &Path) -> Result<()> {
    let refused = |what: &str| Err(StoreError::Refused { path: to.to_path_buf(), what: what.into() });
    match fs::read_dir(to) {
        Ok(mut entries) if entries.next().is_some() => refused("this folder is not empty: name a new one"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && to.symlink_metadata().is_err() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(StoreError::io(to)(error)),
        Err(_) => refused("this is not a folder: name a new one"),
    }
}

/// A file of its own with the content of another, on disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(StoreError::io(parent))?;
    let mut source = File::open(from).map_err(StoreError::io(from))?;
    // Not with the permissions of the cache, whose files nobody may change.
    let mut copy = File::create_new(to).map_err(StoreError::io(to))?;
    io::copy(&mut source, &mut copy).map_err(StoreError::io(to))?;
    copy.sync_all().map_err(StoreError::io(to))
}

/// The folder that becomes the result. Its lock ends with the process.
struct Part {
    folder: PathBuf,
    _lock: File,
}

impl Part {
    /// Takes the hidden folder beside `to`, and removes what an interrupted export left in it.
    fn begin(to: &Path) -> Result<Self> {
        let name = to.file_name().ok_or_else(|| StoreError::Refused {
            path: to.to_path_buf(),
            what: "this is no name for a new folder".into(),
        })?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(StoreError::io(parent))?;
        let hidden: OsString = [".".as_ref(), name, ".imp-flow-part".as_ref()].into_iter().collect();
        let folder = parent.join(hidden);
        let busy = || StoreError::Refused { path: to.to_path_buf(), what: "another process writes this folder now".into() };
        fs::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        let lock = File::open(&folder).map_err(StoreError::io(&folder))?;
        match lock.try_lock() {
            // The other process may just have finished.
            Ok(()) if Stamp::of(&lock).zip(Stamp::at(&folder)).is_some_and(|(held, there)| held.is_same_file(&there)) => {}
            Ok(()) | Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(source)) => return Err(StoreError::Io { path: folder, source }),
        }
        for entry in fs::read_dir(&folder).map_err(StoreError::io(&folder))?.flatten() {
            remove_all(&entry.path())?;
        }
        Ok(Self { folder, _lock: lock })
    }

    fn finish(self, to: &Path) -> Result<()> {
        // An empty folder is replaced.
        fs::rename(&self.folder, to).map_err(StoreError::io(to))?;
        let parent = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(StoreError::io(parent))
    }
}
