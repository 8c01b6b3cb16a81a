//! What running runs use, so that nobody throws it away. Unaware of why they use it.
//!
//! Each run has a file under `live/` that it holds locked and in which it notes every key that it looked at. Looking and
//! noting happen under the shared lock of `locks/gc`, as does taking in what a stage made; whoever throws things away holds
//! that lock alone. The operating system lets go of all locks when a process ends, however it ends.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io::{Read, Write},
    path::PathBuf,
};

use super::{
    Digest, Store,
    error::{Result, StoreError},
    files::open_lock,
};

/// While it lives, nothing is thrown away.
#[derive(Debug)]
pub(crate) struct Guard(#[expect(dead_code, reason = "held, not read")] File);

/// The keys that this run uses.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    file: File,
}

impl Store {
    /// Keeps others from throwing things away; waits while somebody does.
    pub(crate) fn guard(&self) -> Result<Guard> {
        let path = self.gc_lock();
        let file = open_lock(&path)?;
        file.lock_shared().map_err(StoreError::io(&path))?;
        Ok(Guard(file))
    }

    /// Keeps others from using the store, to throw things away. The hand of whoever looks something up is waited for.
    pub(super) fn guard_alone(&self) -> Result<Guard> {
        let path = self.gc_lock();
        let file = open_lock(&path)?;
        file.lock().map_err(StoreError::io(&path))?;
        Ok(Guard(file))
    }

    /// Begins the list of what the run `id` uses.
    pub(crate) fn lease(&self, id: &str) -> Result<Lease> {
        // Whoever throws things away must not take the list for that of a dead run before it is locked.
        let _guard = self.guard()?;
        let path = self.root.join("live").join(id);
        let file = open_lock(&path)?;
        file.lock().map_err(StoreError::io(&path))?;
        Ok(Lease { path, file })
    }

    /// Whether the run `id` is going on.
    pub(crate) fn is_running(&self, id: &str) -> bool {
        let file = File::open(self.root.join("live").join(id));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The keys and trees that running runs use. Lists of runs that were killed go. To be called under the lock of whoever throws
    /// things away.
    pub(super) fn used_now(&self) -> Result<HashSet<Digest>> {
        let folder = self.root.join("live");
        let mut keys = HashSet::new();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(keys),
            Err(source) => return Err(StoreError::Io { path: folder, source }),
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let Ok(file) = File::open(&path) else { continue };
            match file.try_lock() {
                Ok(()) => drop(fs::remove_file(&path)),
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    (&file).read_to_string(&mut text).map_err(StoreError::io(&path))?;
                    keys.extend(text.lines().filter_map(Digest::from_hex));
                }
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
            }
        }
        Ok(keys)
    }

    fn gc_lock(&self) -> PathBuf {
        self.root.join("locks").join("gc")
    }
}

impl Lease {
    /// Notes keys and trees that are in use until this run ends.
    pub(crate) fn add(&mut self, keys: &[Digest], trees: &[Digest]) -> Result<()> {
        let text: String = keys.iter().chain(trees).map(|key| key.hex() + "\n").collect();
        self.file.write_all(text.as_bytes()).map_err(StoreError::io(&self.path))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // What is left of a run is cleared away by whoever looks next.
        let _ = fs::remove_file(&self.path);
    }
}
