//! File contents by digest: stores the output of a stage, and presents it as a folder again.
//! Independent of keys and receipts.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::{
    Digest, Store, TreeFile, TreeRef, disk,
    error::{Result, StoreError},
    files::{is_folder, look_up, make_parent, move_into_place, read, remove_all},
    intact::Depth,
    mend::Mended,
    stamp::Stamp,
    tree::Tree,
};

impl Store {
    /// Moves the folder `out` into the store: its files become objects, and the folder itself becomes the tree, also where there
    /// is one already. Returns what was wrong with that one.
    pub(crate) fn add_folder(&self, out: &Path) -> Result<(TreeRef, Option<Mended>)> {
        let tree = Tree::hash(out)?;
        let reference = tree.reference();
        let folder = self.path("trees", reference.digest);
        let mended = if is_folder(&folder) { self.input_folder(reference.digest)?.into_parts().1 } else { None };
        flush(out, &tree)?;
        let mut files: Vec<&TreeFile> = tree.0.iter().collect();
        files.sort_by_key(|file| file.digest);
        // Equal files one after the other: they become one object.
        files.par_chunk_by(|one, next| one.digest == next.digest).try_for_each(|equal| {
            equal.iter().try_for_each(|file| self.add_file(&out.join(&file.path), file.digest))
        })?;
        self.write_object(tree.listing().as_bytes())?;
        make_parent(&folder)?;
        if tree.0.iter().all(|file| self.is_link(&folder.join(&file.path), file.digest)) {
            // Stages may be reading the folder that is there, and it is as good as the new one.
            remove_all(out)?;
        } else {
            self.place(out, &folder)?;
        }
        let found = self.inspect(reference.digest, &tree.0, Depth::Fresh);
        // Without this note, the files are read again when a stage needs them.
        let _ = self.note_intact(reference.digest, &found);
        Ok((reference, mended))
    }

    fn is_link(&self, file: &Path, digest: Digest) -> bool {
        let [file, object] = [file, &*self.object(digest)].map(Stamp::at);
        file.zip(object).is_some_and(|(file, object)| file.is_same_file(&object))
    }

    /// Moves the folder `new` to `folder`, in place of what is there, so that a stage that reads there now always finds it.
    fn place(&self, new: &Path, folder: &Path) -> Result<()> {
        if look_up(folder).is_err() && disk::rename(new, folder).is_ok() {
            return Ok(());
        }
        if disk::exchange(new, folder).is_ok() {
            return remove_all(new);
        }
        // No exchange on this disk.
        let tmp = self.tmp()?;
        let old = tempfile::TempDir::new_in(&tmp).map_err(StoreError::io(&tmp))?;
        // It may be gone by now, and if it can't be moved, the next line says so.
        let _ = disk::rename(folder, &old.path().join("tree"));
        disk::rename(new, folder).map_err(StoreError::io(folder))
    }

    /// Stores a single file, such as a log. `None` if it does not exist or is empty.
    pub(crate) fn keep_file(&self, path: &Path) -> Result<Option<Digest>> {
        match read(path) {
            Ok(bytes) if bytes.is_empty() => Ok(None),
            Ok(bytes) => self.write_object(&bytes).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::Io { path: path.to_path_buf(), source }),
        }
    }

    /// Like [`Store::keep_file`], for a log, which may say things that are not for everyone.
    pub(crate) fn keep_log(&self, path: &Path) -> Result<Option<Digest>> {
        let kept = self.keep_file(path)?;
        if let Some(digest) = kept {
            self.keep_private_file(&self.object(digest))?;
        }
        Ok(kept)
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
        let bytes = read(&path).map_err(StoreError::io(&path))?;
        let what = "this list of files is damaged; `imp-flow cache verify` removes damaged files, and the next run makes them again";
        let whole =
            Some(bytes).filter(|bytes| Digest::of(bytes) == digest).and_then(|bytes| String::from_utf8(bytes).ok());
        whole
            .as_deref()
            .and_then(Tree::parse)
            .map(|tree| tree.0)
            .ok_or_else(|| StoreError::Refused { path, what: what.into() })
    }

    /// Creates the folder of a tree from its objects. False if objects are missing.
    pub(super) fn build_tree(&self, tree: Digest, listing: &[TreeFile]) -> Result<bool> {
        let is_there = |file: &TreeFile| {
            look_up(&self.object(file.digest)).is_ok_and(|found| found.is_file() && found.len() == file.size)
        };
        if !listing.iter().all(is_there) {
            return Ok(false);
        }
        let folder = self.path("trees", tree);
        let tmp = self.tmp()?;
        let temporary = tempfile::TempDir::new_in(&tmp).map_err(StoreError::io(&tmp))?;
        let new = temporary.path().join("tree");
        disk::create_dir_all(&new).map_err(StoreError::io(&new))?;
        for file in listing {
            let target = new.join(&file.path);
            make_parent(&target)?;
            self.link_or_copy(&self.object(file.digest), &target)?;
        }
        make_parent(&folder)?;
        match disk::rename(&new, &folder) {
            // Another process has created it.
            Err(_) if is_folder(&folder) => Ok(true),
            moved => moved.map(|()| true).map_err(StoreError::io(&folder)),
        }
    }

    fn write_object(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        let path = self.object(digest);
        // Compare contents, since an existing object may be damaged.
        if !read(&path).is_ok_and(|existing| existing == bytes) {
            self.write_atomic(&path, bytes)?;
            read_only(&path)?;
        }
        Ok(digest)
    }

    /// Creates another name for a file. All links are made here, because some disks have none.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        if self.links { disk::hard_link(from, to) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn link_or_copy(&self, from: &Path, to: &Path) -> Result<()> {
        if self.link(from, to).is_ok() {
            return Ok(());
        }
        disk::copy(from, to).map_err(StoreError::io(to))?;
        read_only(to)
    }

    /// Stores `file` under its digest. Afterwards, both names are links to the same file on disk.
    pub(super) fn add_file(&self, file: &Path, digest: Digest) -> Result<()> {
        let object = self.object(digest);
        make_parent(&object)?;
        match self.link(file, &object) {
            Ok(()) => read_only(&object),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.join(file, &object, digest),
            // No hard links on this disk: store a copy.
            Err(_) => {
                read_only(file)?;
                if self.is_whole(digest) {
                    return Ok(());
                }
                let temporary = self.temporary()?.into_temp_path();
                disk::copy(file, &temporary).map_err(StoreError::io(file))?;
                disk::sync(&temporary).map_err(StoreError::io(&object))?;
                move_into_place(temporary, &object)?;
                read_only(&object)
            }
        }
    }

    /// Makes one file on disk of `file` and an existing object.
    fn join(&self, file: &Path, object: &Path, digest: Digest) -> Result<()> {
        let mut sibling = file.as_os_str().to_owned();
        sibling.push(format!(".imp-flow-{}", digest.short()));
        let sibling = PathBuf::from(sibling);
        if !self.is_link(file, digest) && !self.is_whole(digest) {
            // The object is damaged: replace it at once, since another process may have done so, and be using it.
            self.link(file, &sibling).map_err(StoreError::io(&sibling))?;
            read_only(&sibling)?;
            if disk::rename(&sibling, object).is_err() {
                // A folder in its place can't be renamed over.
                self.take_out(digest)?;
                disk::rename(&sibling, object).map_err(StoreError::io(object))?;
            }
            return Ok(());
        }
        // The object exists: link to it, so that the content is on disk only once.
        if self.link(object, &sibling).is_ok() {
            disk::rename(&sibling, file).map_err(StoreError::io(file))?;
            // If both names already are links to the same file, renaming does nothing and the sibling is left over.
            let _ = disk::remove_file(&sibling);
        }
        read_only(file)
    }
}

pub(super) fn read_only(path: &Path) -> Result<()> {
    let mut permissions = path.metadata().map_err(StoreError::io(path))?.permissions();
    if permissions.readonly() {
        // Setting the same permissions would change the file's change time.
        return Ok(());
    }
    permissions.set_readonly(true);
    fs::set_permissions(path, permissions).map_err(StoreError::io(path))
}

/// Up to this number, files are flushed one by one, so as not to wait for files of other processes. Above it, one call flushes the
/// whole file system, since one call per file takes seconds for thousands of images.
pub(super) const FEW: usize = 32;

/// Flushes everything below `folder` to disk.
fn flush(folder: &Path, tree: &Tree) -> Result<()> {
    #[cfg(target_os = "linux")]
    if tree.0.len() > FEW {
        return disk::sync_all(folder).map_err(StoreError::io(folder));
    }
    tree.0.iter().try_for_each(|file| {
        let path = folder.join(&file.path);
        disk::sync(&path).map_err(StoreError::io(&path))
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

    fn folder_of(store: &Store, tree: Digest) -> Option<PathBuf> {
        store.tree_folder(tree).unwrap().into_parts().0
    }

    #[test]
    fn a_folder_is_stored_once_and_recreated_from_its_objects() {
        let (folder, store) = store();
        let first = store.add_folder(&output(folder.path())).unwrap().0;
        assert_eq!((first.files, first.bytes), (3, 10));
        assert!(!folder.path().join("out").exists(), "the folder itself becomes the tree");
        assert_eq!(
            store.add_folder(&output(folder.path())).unwrap(),
            (first, None),
            "the same content is the same tree"
        );

        let tree = folder_of(&store, first.digest).unwrap();
        fs::remove_dir_all(&tree).unwrap();
        assert_eq!(folder_of(&store, first.digest).unwrap(), tree);
        assert_eq!(fs::read_to_string(tree.join("images/b.png")).unwrap(), "same");
        assert!(tree.join("config.json").metadata().unwrap().permissions().readonly());
    }

    #[test]
    fn equal_files_are_on_disk_only_once() {
        use std::os::unix::fs::MetadataExt;
        let (folder, store) = store();
        let tree = store.add_folder(&output(folder.path())).unwrap().0;
        let tree = folder_of(&store, tree.digest).unwrap();
        let inode = |name: &str| tree.join(name).metadata().unwrap().ino();
        assert_eq!(inode("images/a.png"), inode("images/b.png"));
        assert_eq!(fs::read_dir(tree.join("images")).unwrap().count(), 2, "no temporary file is left");
    }

    /// Of many equal files each finds the object damaged. None must find it gone while another one replaces it.
    #[test]
    fn a_damaged_object_is_replaced_by_one_of_many_equal_files() {
        use std::os::unix::fs::MetadataExt;
        let (folder, store) = store();
        let object = store.object(Digest::of(b"same"));
        for round in 0..100 {
            let out = folder.path().join("out");
            fs::create_dir(&out).unwrap();
            (0..32).for_each(|number| fs::write(out.join(number.to_string()), "same").unwrap());
            make_parent(&object).unwrap();
            let _ = fs::remove_file(&object);
            fs::write(&object, "lost").unwrap();
            let (tree, _) = store.add_folder(&out).unwrap_or_else(|error| panic!("round {round}: {error}"));
            assert_eq!(fs::read(&object).unwrap(), b"same");
            let placed = folder_of(&store, tree.digest).unwrap();
            let inode = object.metadata().unwrap().ino();
            assert!((0..32).all(|number| placed.join(number.to_string()).metadata().unwrap().ino() == inode));
            fs::remove_dir_all(placed).unwrap();
        }
    }

    #[test]
    fn a_tree_with_missing_objects_is_not_found() {
        let (folder, store) = store();
        let tree = store.add_folder(&output(folder.path())).unwrap().0;
        fs::remove_dir_all(folder_of(&store, tree.digest).unwrap()).unwrap();
        fs::remove_file(store.object(Digest::of(b"same"))).unwrap();
        assert_eq!(folder_of(&store, tree.digest), None);
    }
}
