//! One lock per key, so that two runs that share a cache never make the same result twice.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

use super::{
    Digest, Store, disk,
    error::{Result, StoreError},
    files::{open, open_lock, open_to_lock, remove_all},
    stamp::Stamp,
};

/// Held while a stage runs. The operating system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct KeyLock(#[expect(dead_code, reason = "held, not read")] File);

impl Store {
    /// Takes the lock of `key`. While another run holds it, calls `waiting` once and waits. Dropping the future stops waiting.
    pub(crate) async fn lock(&self, key: Digest, mut waiting: impl FnMut()) -> Result<KeyLock> {
        let path = self.root.join("locks").join(key.hex());
        let mut reported = false;
        loop {
            let read_only = || StoreError::Io { path: path.clone(), source: io::ErrorKind::PermissionDenied.into() };
            let file = open_lock(&path)?.ok_or_else(read_only)?;
            disk::before_reading(&path);
            match file.try_lock() {
                // Garbage collection may have removed the file after it was opened.
                Ok(()) if is_at(&file, &path) => return Ok(KeyLock(file)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if !reported {
                        waiting();
                        reported = true;
                    }
                    disk::wait_for(&file).await;
                }
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
            }
        }
    }

    /// Removes the locks of keys that no process holds.
    pub(super) fn remove_free_locks(&self, dry_run: bool) -> Result<()> {
        for (path, _) in self.named_by_digest("locks", 0)? {
            // Whoever opened the file meanwhile sees that it is gone once it has the lock.
            let is_free = |file: &File| file.try_lock().is_ok() && is_at(file, &path);
            if !dry_run && open_to_lock(&path).is_ok_and(|file| is_free(&file) && remove_all(&path).is_err()) {
                tracing::debug!("could not remove {}", path.display());
            }
        }
        Ok(())
    }

    /// Whether a run is making the result of this key now.
    pub(crate) fn is_being_made(&self, key: Digest) -> bool {
        let file = open(&self.root.join("locks").join(key.hex()));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}

/// Tries out whether the disk of `folder` knows locks. Some network disks grant every lock. Leaves a file there.
pub(crate) fn try_locks(folder: &Path) -> std::result::Result<(), String> {
    let path = folder.join("lock");
    let open = || match open_lock(&path) {
        Ok(file) => file.ok_or_else(|| "no file can be made to be locked".to_string()),
        Err(error) => Err(error.to_string()),
    };
    let (first, second) = (open()?, open()?);
    for lock in [File::try_lock, File::try_lock_shared] {
        lock(&first).map_err(|error| error.to_string())?;
        match second.try_lock() {
            Err(TryLockError::WouldBlock) => first.unlock().map_err(|error| error.to_string())?,
            Err(error) => return Err(error.to_string()),
            Ok(()) => return Err("a lock was given twice".into()),
        }
    }
    Ok(())
}

/// Whether `file` is still the one at `path`.
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let opened = file.metadata().ok().as_ref().map(Stamp::of);
    opened.zip(Stamp::at(path)).is_some_and(|(opened, there)| opened.is_same_file(&there))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn lock(store: &Store, key: Digest) -> KeyLock {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(store.lock(key, || panic!("it is free"))).unwrap()
    }

    #[test]
    fn who_may_write_into_the_cache_may_write_into_its_locks() {
        use std::{fs::Permissions, os::unix::fs::PermissionsExt};
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        for (cache, bits) in [(0o700, 0), (0o2775, 0o060), (0o777, 0o066)] {
            std::fs::set_permissions(&store.root, Permissions::from_mode(cache)).unwrap();
            let path = store.root.join("locks").join(format!("{cache:o}"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let file = open_lock(&path).unwrap().unwrap();
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600 | bits, "{cache:o}");
        }
        // What a link leads to is somebody's own.
        let (own, links) =
            (folder.path().join("own"), ["soft", "hard"].map(|name| store.root.join("locks").join(name)));
        std::fs::write(&own, "").unwrap();
        std::fs::set_permissions(&own, Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&own, &links[0]).unwrap();
        std::fs::hard_link(&own, &links[1]).unwrap();
        for link in links {
            open_lock(&link).unwrap();
            assert_eq!(own.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", link.display());
        }
    }

    #[test]
    fn only_free_locks_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let [held, free] = [b"held", b"free"].map(|name| Digest::of(name));
        let _held = lock(&store, held);
        drop(lock(&store, free));
        let path = |key: Digest| store.root.join("locks").join(key.hex());
        store.remove_free_locks(true).unwrap();
        assert!(path(free).exists());
        // Opened before the file is removed, locked after.
        let late = open_lock(&path(free)).unwrap().unwrap();
        store.remove_free_locks(false).unwrap();
        assert!(path(held).exists() && !path(free).exists());
        late.lock().unwrap();
        assert!(!is_at(&late, &path(free)), "this lock protects nothing");
        let _again = lock(&store, free);
        assert!(store.is_being_made(free) && store.is_being_made(held));
    }

    #[test]
    fn a_folder_in_place_of_a_lock_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let key = Digest::of(b"key");
        let locks = store.root.join("locks");
        for name in [key.hex(), "gc".into()] {
            std::fs::create_dir_all(locks.join(name).join("x")).unwrap();
        }
        drop(lock(&store, key));
        store.gc(5, false).unwrap();
        assert_eq!(std::fs::read_dir(&locks).unwrap().count(), 1, "only that of garbage collection is left");
    }
}
