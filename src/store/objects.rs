//! File contents by digest: stores the output of a stage, and presents it as a folder again.
//! Independent of keys and receipts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    Digest, Store, TreeFile, TreeRef,
    error::{Result, StoreError},
    files::{make_parent, move_into_place},
    tree::{Tree, hash_file},
};

impl Store {
    /// Moves the folder `out` into the store: its files become objects, and the folder itself becomes the tree.
    pub(crate) fn add_folder(&self, out: &Path) -> Result<TreeRef> {
        let tree = Tree::hash(out)?;
        flush(out, &tree)?;
        tree.0.par_iter().try_for_each(|file| self.add_file(&out.join(&file.path), file.digest))?;
        let reference = tree.reference();
        self.write_object(tree.listing().as_bytes())?;
        let folder = self.path("trees", reference.digest);
        make_parent(&folder)?;
        match fs::rename(out, &folder) {
            Ok(()) => {}
            // The tree exists already; this copy is not needed.
            Err(_) if folder.is_dir() => fs::remove_dir_all(out).map_err(StoreError::io(out))?,
            Err(source) => return Err(StoreError::Io { path: folder, source }),
        }
        Ok(reference)
    }

    /// Stores a single file, such as a log. `None` if it does not exist or is empty.
    pub(crate) fn keep_file(&self, path: &Path) -> Result<Option<Digest>> {
        match fs::read(path) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => self.write_object(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path: path.to_path_buf(), source }),
        }
    }

    /// The path of the content with this digest.
    pub(crate) fn object(&self, digest: Digest) -> PathBuf {
        self.path("objects", digest)
    }

    /// The files of a tree.
    ///
    /// # Errors
    /// If its listing is missing or damaged.
    pub(crate) fn tree(&self, digest: Digest) -> Result<Vec<TreeFile>> {
        let path = self.object(digest);
        let text = fs::read_to_string(&path).map_err(StoreError::io(&path))?;
        let what = "this list of files is damaged; `imp-flow cache verify` removes damaged files, and the next run makes them again";
        Tree::parse(&text).map(|tree| tree.0).ok_or_else(|| StoreError::Refused { path, what: what.into() })
    }

    /// The folder of a tree. Recreates it from its objects if it does not exist; `None` if objects are missing.
    pub(crate) fn tree_folder(&self, digest: Digest) -> Result<Option<PathBuf>> {
        let folder = self.path("trees", digest);
        if folder.is_dir() {
            return Ok(Some(folder));
        }
        let Some(tree) = fs::read_to_string(self.object(digest)).ok().and_then(|text| Tree::parse(&text)) else {
            return Ok(None);
        };
        if !tree.0.iter().all(|file| self.object(file.digest).metadata().is_ok_and(|found| found.len() == file.size)) {
            return Ok(None);
        }
        let tmp = self.tmp()?;
        let temporary = tempfile::TempDir::new_in(&tmp).map_err(StoreError::io(&tmp))?;
        for file in &tree.0 {
            let target = temporary.path().join(&file.path);
            make_parent(&target)?;
            link_or_copy(&self.object(file.digest), &target)?;
        }
        make_parent(&folder)?;
        let temporary = temporary.keep();
        match fs::rename(&temporary, &folder) {
            Ok(()) => Ok(Some(folder)),
            // Another process has created it.
            Err(_) if folder.is_dir() => {
                fs::remove_dir_all(&temporary).map_err(StoreError::io(&temporary))?;
                Ok(Some(folder))
            }
            Err(source) => Err(StoreError::Io { path: folder, source }),
        }
    }

    fn write_object(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.object(digest);
        // Compare contents, since an existing object may be damaged.
        if !fs::read(&path).is_ok_and(|existing| existing == bytes) {
            self.write_atomic(&path, bytes)?;
            read_only(&path)?;
        }
        Ok(digest)
    }

    /// Stores `file` under its digest. Afterwards, both names are links to the same file on disk.
    pub(super) fn add_file(&self, file: &Path, digest: Digest) -> Result<()> {
        let object = self.object(digest);
        make_parent(&object)?;
        match fs::hard_link(file, &object) {
            Ok(()) => read_only(&object),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut sibling = file.as_os_str().to_owned();
                sibling.push(format!(".imp-flow-{}", digest.short()));
                let sibling = PathBuf::from(sibling);
                if !same_file(file, &object)? && hash_file(&object)?.0 != digest {
                    // The object is damaged: replace it.
                    fs::hard_link(file, &sibling).map_err(StoreError::io(&sibling))?;
                    fs::rename(&sibling, &object).map_err(StoreError::io(&object))?;
                    return read_only(&object);
                }
                // The object exists: link to it, so that the content is on disk only once.
                if fs::hard_link(&object, &sibling).is_ok() {
                    fs::rename(&sibling, file).map_err(StoreError::io(file))?;
                    // If both names already are links to the same file, renaming does nothing and the sibling is left over.
                    let _ = fs::remove_file(&sibling);
                }
                Ok(())
            }
            // No hard links on this disk: store a copy.
            Err(_) => {
                let temporary = self.temporary()?.into_temp_path();
                fs::copy(file, &temporary).map_err(StoreError::io(file))?;
                move_into_place(temporary, &object)?;
                read_only(&object)
            }
        }
    }
}

fn same_file(a: &Path, b: &Path) -> Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let [a, b] = [a, b].map(|path| path.metadata().map_err(StoreError::io(path)));
    let (a, b) = (a?, b?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}

fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    fs::copy(from, to).map(drop).map_err(StoreError::io(to))
}

fn read_only(path: &Path) -> Result<()> {
    let mut permissions = path.metadata().map_err(StoreError::io(path))?.permissions();
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(StoreError::io(path))
}

/// Up to this number, files are flushed one by one, so as not to wait for files of other processes. Above it, one call flushes the
/// whole file system, since one call per file takes seconds for thousands of images.
const FEW: usize = 32;

/// Flushes everything below `folder` to disk.
fn flush(folder: &Path, tree: &Tree) -> Result<()> {
    #[cfg(target_os = "linux")]
    if tree.0.len() > FEW {
        let handle = fs::File::open(folder).map_err(StoreError::io(folder))?;
        return rustix::fs::syncfs(&handle)
            .map_err(|error| StoreError::Io { path: folder.to_path_buf(), source: error.into() });
    }
    tree.0.iter().try_for_each(|file| {
        let path = folder.join(&file.path);
        fs::File::open(&path).and_then(|file| file.sync_all()).map_err(StoreError::io(&path))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        (folder, store)
    }

    fn output(folder: &Path) -> PathBuf {
        let out = folder.join("out");
        fs::create_dir_all(out.join("images")).unwrap();
        fs::write(out.join("images/a.png"), "same").unwrap();
        fs::write(out.join("images/b.png"), "same").unwrap();
        fs::write(out.join("config.json"), "{}").unwrap();
        out
    }

    #[test]
    fn a_folder_is_stored_once_and_recreated_from_its_objects() {
        let (folder, store) = store();
        let first = store.add_folder(&output(folder.path())).unwrap();
        assert_eq!((first.files, first.bytes), (3, 10));
        assert!(!folder.path().join("out").exists(), "the folder itself becomes the tree");
        assert_eq!(store.add_folder(&output(folder.path())).unwrap(), first, "the same content is the same tree");

        let tree = store.tree_folder(first.digest).unwrap().unwrap();
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(store.tree_folder(first.digest).unwrap().unwrap(), tree);
        assert_eq!(fs::read_to_string(tree.join("images/b.png")).unwrap(), "same");
        assert!(tree.join("config.json").metadata().unwrap().permissions().readonly());
    }

    #[test]
    fn equal_files_are_on_disk_only_once() {
        use std::os::unix::fs::MetadataExt;
        let (folder, store) = store();
        let tree = store.add_folder(&output(folder.path())).unwrap();
        let tree = store.tree_folder(tree.digest).unwrap().unwrap();
        let inode = |name: &str| tree.join(name).metadata().unwrap().ino();
        assert_eq!(inode("images/a.png"), inode("images/b.png"));
        assert_eq!(fs::read_dir(tree.join("images")).unwrap().count(), 2, "no temporary file is left");
    }

    #[test]
    fn a_tree_with_missing_objects_is_not_found() {
        let (folder, store) = store();
        let tree = store.add_folder(&output(folder.path())).unwrap();
        fs::remove_dir_all(store.tree_folder(tree.digest).unwrap().unwrap()).unwrap();
        fs::remove_file(store.object(Digest::of(b"same"))).unwrap();
        assert_eq!(store.tree_folder(tree.digest).unwrap(), None);
    }
}
