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
        // A folder that is the top of another disk can't be replaced, and its own disk is where the files should go.
        let device = |path: &Path| path.metadata().ok().map(|data| std::os::unix::fs::MetadataExt::dev(&data));
        if to.is_symlink() || device(to).is_some_and(|there| Some(there) != device(parent(to))) {
            let what = "this is a link, or the top of another disk: name a new folder in it".into();
            return Err(StoreError::Refused { path: to.to_path_buf(), what });
        }
        let part = Part::begin(to)?;
        let done = AtomicU64::new(0);
        listing.par_iter().try_for_each(|file| {
            copy(&from.join(&file.path), &part.folder.join(&file.path))?;
            progress(done.fetch_add(file.size, Relaxed) + file.size);
            Ok(())
        })?;
        let copied = Tree::hash(&part.folder)?;
        if let Some(path) = first_difference(&listing, &copied.0) {
            let what =
                "its copy is not what the cache says: `imp-flow cache verify` finds damaged files; check both disks"
                    .into();
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

/// The folder in which `to` lies.
fn parent(to: &Path) -> &Path {
    to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn check_empty(to: &Path) -> Result<()> {
    let refused = |what: &str| Err(StoreError::Refused { path: to.to_path_buf(), what: what.into() });
    match fs::read_dir(to) {
        Ok(mut entries) => match entries.next() {
            Some(_) => refused("this folder is not empty: name a new one"),
            None => Ok(()),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound && to.symlink_metadata().is_err() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(there(to)(error)),
        Err(_) => refused("this is not a folder: name a new one"),
    }
}

/// For `map_err`: what the place of the copies does not allow. The cache is well.
fn there(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    |source| StoreError::Refused { path: path.to_path_buf(), what: source.to_string() }
}

/// A file of its own with the content of another, on disk.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().unwrap_or(to);
    fs::create_dir_all(parent).map_err(there(parent))?;
    let mut source = File::open(from).map_err(StoreError::io(from))?;
    // Not with the permissions of the cache, whose files nobody may change.
    let mut copy = File::create_new(to).map_err(there(to))?;
    io::copy(&mut source, &mut copy).map_err(there(to))?;
    copy.sync_all().map_err(there(to))
}

/// The folder that becomes the result. Its lock ends with the process.
struct Part {
    folder: PathBuf,
    /// Whether it has its name.
    done: bool,
    _lock: File,
}

impl Drop for Part {
    fn drop(&mut self) {
        // What stays, the next export removes.
        if !self.done {
            let _ = remove_all(&self.folder);
        }
    }
}

impl Part {
    /// Takes the hidden folder beside `to`, and removes what an interrupted export left in it.
    fn begin(to: &Path) -> Result<Self> {
        let name = to.file_name().ok_or_else(|| StoreError::Refused {
            path: to.to_path_buf(),
            what: "this is no name for a new folder".into(),
        })?;
        let parent = parent(to);
        fs::create_dir_all(parent).map_err(there(parent))?;
        let hidden: OsString = [".".as_ref(), name, ".imp-flow-part".as_ref()].into_iter().collect();
        let folder = parent.join(hidden);
        let busy =
            || StoreError::Refused { path: to.to_path_buf(), what: "another process writes this folder now".into() };
        fs::create_dir_all(&folder).map_err(there(&folder))?;
        let lock = File::open(&folder).map_err(there(&folder))?;
        match lock.try_lock() {
            // The other process may just have finished.
            Ok(())
                if lock
                    .metadata()
                    .ok()
                    .map(|lock| Stamp::of(&lock))
                    .zip(Stamp::at(&folder))
                    .is_some_and(|(held, there)| held.is_same_file(&there)) => {}
            Ok(()) | Err(TryLockError::WouldBlock) => return Err(busy()),
            Err(TryLockError::Error(source)) => return Err(there(&folder)(source)),
        }
        for entry in fs::read_dir(&folder).map_err(there(&folder))?.flatten() {
            remove_all(&entry.path())?;
        }
        Ok(Self { folder, done: false, _lock: lock })
    }

    fn finish(mut self, to: &Path) -> Result<()> {
        // An empty folder is replaced.
        fs::rename(&self.folder, to).map_err(there(to))?;
        self.done = true;
        let parent = parent(to);
        File::open(parent).and_then(|folder| folder.sync_all()).map_err(there(parent))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::store::TreeRef;

    /// A cache with a tree of two files.
    fn cache(root: &Path) -> (Store, TreeRef) {
        let (store, out) = (Store::open(&root.join("cache")).unwrap(), root.join("out"));
        fs::create_dir_all(out.join("sub")).unwrap();
        fs::write(out.join("a"), "first").unwrap();
        fs::write(out.join("sub/b"), "second").unwrap();
        let tree = store.add_folder(&out).unwrap().0;
        (store, tree)
    }

    #[test]
    fn an_export_is_a_folder_of_the_users_own() {
        let root = tempfile::tempdir().unwrap();
        let (store, tree) = cache(root.path());
        let (to, most) = (root.path().join("new/folder"), AtomicU64::new(0));
        // What an interrupted export left.
        let part = root.path().join("new/.folder.imp-flow-part");
        fs::create_dir_all(part.join("old")).unwrap();
        store
            .export(tree.digest, &to, |done| {
                most.fetch_max(done, Relaxed);
            })
            .unwrap();
        assert_eq!(most.into_inner(), tree.bytes);
        assert_eq!(
            fs::read_to_string(to.join("a")).unwrap() + &fs::read_to_string(to.join("sub/b")).unwrap(),
            "firstsecond"
        );
        assert!(to.join("a").metadata().unwrap().permissions().mode() & 0o200 != 0, "it can be changed");
        fs::write(to.join("a"), "changed").unwrap();
        assert!(!part.exists() && store.is_still_intact(tree.digest, crate::store::now() as u64));
        let names = fs::read_dir(root.path().join("new")).unwrap().count();
        assert_eq!(names, 1);
    }

    #[test]
    fn what_is_there_is_never_replaced_and_damage_is_never_exported() {
        let root = tempfile::tempdir().unwrap();
        let (store, tree) = cache(root.path());
        let refused = |to: &Path| store.export(tree.digest, to, |_| {}).unwrap_err().to_string();
        let (full, empty, file) = (root.path().join("full"), root.path().join("empty"), root.path().join("file"));
        fs::create_dir_all(full.join("x")).unwrap();
        fs::create_dir_all(&empty).unwrap();
        fs::write(&file, "").unwrap();
        assert!(refused(&full).contains("not empty"));
        assert!(refused(&file).contains("not a folder"));
        let part = root.path().join(".busy.imp-flow-part");
        fs::create_dir_all(&part).unwrap();
        let held = File::open(&part).unwrap();
        held.lock().unwrap();
        assert!(refused(&root.path().join("busy")).contains("another process"));
        store.export(tree.digest, &empty, |_| {}).unwrap();
        assert!(empty.join("sub/b").is_file());
        // An object whose content was changed.
        let object = store.tree(tree.digest).unwrap()[0].digest;
        let object = store.object(object);
        fs::set_permissions(&object, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(&object, "other").unwrap();
        let to = root.path().join("damaged");
        let error = refused(&to);
        assert!(!to.exists() && !root.path().join(".damaged.imp-flow-part").exists(), "{error}");
    }
}
