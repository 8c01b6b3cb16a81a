//! Protects what current runs use from garbage collection. Independent of why they use it.
//!
//! Each run keeps a locked file under `live/` and writes into it every key that it looked up. It does both under the shared
//! lock of `locks/gc`, as it does when it stores a result; garbage collection takes that lock exclusively. The operating system
//! releases all locks when a process ends, however it ends.

use std::{
    collections::HashSet,
    fs::{File, TryLockError},
    io::{self, Read},
    path::PathBuf,
};

use super::{
    Digest, Store, disk,
    error::{Result, StoreError},
    files::{entries, open, open_lock},
    lock::is_at,
    stamp::is_on_nfs,
};

/// Blocks garbage collection while it exists. Without a file, nobody has ever collected garbage in a cache that this process may
/// only read.
#[derive(Debug)]
pub(crate) struct Guard(#[expect(dead_code, reason = "held, not read")] Option<File>);

/// The keys that this run uses. Without a file in a cache that this process may only read.
#[derive(Debug)]
pub(crate) struct Lease {
    path: PathBuf,
    file: Option<File>,
    /// Whether other machines see what is written into the file only once it was flushed.
    on_nfs: bool,
}

impl Store {
    /// Blocks garbage collection; waits while one is running.
    pub(crate) fn guard(&self) -> Result<Guard> {
        let path = self.gc_lock();
        let file = open_lock(&path)?;
        file.as_ref().map_or(Ok(()), disk::lock_shared).map_err(StoreError::io(&path))?;
        Ok(Guard(file))
    }

    /// Blocks all other use of the store. Waits until current lookups are done.
    pub(super) fn guard_alone(&self) -> Result<Guard> {
        let path = self.gc_lock();
        let file = open_lock(&path)?;
        file.as_ref().map_or(Ok(()), disk::lock).map_err(StoreError::io(&path))?;
        Ok(Guard(file))
    }

    /// Starts the lease of the run `id`. If another process has one of this name, as in another container with its own process
    /// numbers, it gets a number after it.
    pub(crate) fn lease(&self, id: &str) -> Result<Lease> {
        // If garbage collection saw the file before it is locked, it would take the run for a dead one.
        let _guard = self.guard()?;
        let mut number = 1;
        loop {
            let name = if number == 1 { id.to_string() } else { format!("{id}-{number}") };
            let path = self.root.join("live").join(name);
            let Some(file) = open_lock(&path)? else { return Ok(Lease { path, file: None, on_nfs: false }) };
            match file.try_lock() {
                Ok(()) if is_at(&file, &path) => {
                    let on_nfs = is_on_nfs(&path);
                    return Ok(Lease { path, file: Some(file), on_nfs });
                }
                // Its owner has just removed it.
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => number += 1,
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
            }
        }
    }

    /// Whether the run `id` is still running.
    pub(crate) fn is_running(&self, id: &str) -> bool {
        let file = open(&self.root.join("live").join(id));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// The keys and trees that current runs use. Removes the leases of killed runs. Call it under [`Store::guard_alone`].
    pub(super) fn used_now(&self) -> Result<HashSet<Digest>> {
        let mut keys = HashSet::new();
        for path in entries(&self.root.join("live"))? {
            let file = match open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                // Whoever it is needs what it names.
                opened => opened.map_err(StoreError::io(&path))?,
            };
            // Nobody else asks for one now, and on NFS one of another member of a group could not be locked alone.
            match file.try_lock_shared() {
                Ok(()) => drop(disk::remove_file(&path)),
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
    /// The name of the run.
    pub(crate) fn id(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Adds keys and trees. They are in use until this run ends.
    pub(crate) fn add(&mut self, keys: &[Digest], trees: &[Digest]) -> Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let text: String = keys.iter().chain(trees).map(|key| key.hex() + "\n").collect();
        disk::write(file, &self.path, text.as_bytes()).map_err(StoreError::io(&self.path))?;
        // Otherwise it stays with this machine for half a minute, and garbage collection on another does not know of it.
        if self.on_nfs { file.sync_data().map_err(StoreError::io(&self.path)) } else { Ok(()) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // If this fails, the next garbage collection removes the file.
        let _ = disk::remove_file(&self.path);
    }
}
