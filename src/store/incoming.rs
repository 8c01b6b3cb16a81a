//! Takes in results that were made in another store: each object while it arrives, and the receipt once all objects are there.
//! Independent of where they come from; what is in them is checked in `foreign.rs` and here.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    Digest, Receipt, Store, TreeFile, disk,
    error::{Result, StoreError},
    files::{look_up, make_parent, move_into_place},
    foreign::Need,
    lock::is_at,
    now,
    objects::{FEW, read_only},
    receipt::Origin,
    tree::hash_file,
};

/// The name of a file in `tmp/` begins so while an object arrives in it. What a killed process has left of one, the next goes on with.
const PREFIX: &str = "incoming-";

/// An object that arrives.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Locked, so that only one process writes it.
    file: File,
    path: tempfile::TempPath,
    need: Need,
    arrived: u64,
}

/// How an object that has arrived turned out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    Stored,
    /// It has other content than its name says, or too much of it.
    Wrong,
}

impl Store {
    /// Whether the store has an object, as far as its size tells. Whoever reads it checks its content.
    pub(crate) fn has(&self, need: &Need) -> bool {
        let found = look_up(&self.object(need.digest));
        found.is_ok_and(|found| found.is_file() && need.size.is_none_or(|size| size == found.len()))
    }

    /// Begins to receive an object, or goes on with what has arrived of it.
    pub(crate) fn receive(&self, need: Need) -> Result<Incoming> {
        let path = self.tmp()?.join(format!("{PREFIX}{}", need.digest));
        let open = OpenOptions::new().create(true).append(true).open(&path);
        if let Ok(file) = open
            && file.try_lock().is_ok()
            && is_at(&file, &path)
            && let Ok(found) = file.metadata()
            && found.is_file()
            && let Ok(path) = tempfile::TempPath::try_from_path(&path)
        {
            let incoming = Incoming { file, path, need, arrived: found.len() };
            return if found.len() <= need.most { Ok(incoming) } else { incoming.again() };
        }
        // Another process receives it, too. Waiting for it would be waiting for its network.
        let (file, path) = self.temporary()?.into_parts();
        Ok(Incoming { file, path, need, arrived: 0 })
    }

    /// The bytes that are free on its disk, if the system says it.
    pub(crate) fn room(&self) -> Option<u64> {
        let disk = rustix::fs::statvfs(&self.root).ok()?;
        disk.f_bavail.checked_mul(disk.f_frsize)
    }

    /// Takes a result in once its objects are there: makes the folder of its tree, and writes the receipt last. False if an object
    /// is missing, as when garbage was collected meanwhile.
    pub(crate) fn take_in(&self, receipt: &Receipt, files: &[TreeFile], from: &str) -> Result<bool> {
        // Keeps garbage collection from deleting objects that no receipt names yet.
        let _guard = self.guard()?;
        let needs = receipt.needs(files);
        if !needs.iter().all(|need| self.has(need)) {
            return Ok(false);
        }
        self.flush_objects(&needs)?;
        if let Some(log) = receipt.log {
            self.keep_private_file(&self.object(log))?;
        }
        if self.input_folder(receipt.output.digest)?.into_parts().0.is_none() {
            return Ok(false);
        }
        let mut taken = receipt.clone();
        taken.origin = Some(Origin { from: from.into(), at: now() as u64 });
        self.write_receipt(&taken)?;
        Ok(true)
    }

    fn flush_objects(&self, needs: &[Need]) -> Result<()> {
        #[cfg(target_os = "linux")]
        if needs.len() > FEW {
            let objects = self.root.join("objects");
            return disk::sync_all(&objects).map_err(StoreError::io(&objects));
        }
        needs.iter().try_for_each(|need| {
            let path = self.object(need.digest);
            disk::sync(&path).map_err(StoreError::io(&path))
        })
    }
}

impl Incoming {
    /// The bytes that have arrived.
    pub(crate) fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Adds the next bytes. False if there are more than there may be.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<bool> {
        if self.arrived + bytes.len() as u64 > self.need.most {
            return Ok(false);
        }
        disk::write(&self.file, &self.path, bytes).map_err(StoreError::io(&self.path))?;
        self.arrived += bytes.len() as u64;
        Ok(true)
    }

    /// Begins anew.
    pub(crate) fn again(mut self) -> Result<Self> {
        self.file.set_len(0).map_err(StoreError::io(&self.path))?;
        self.arrived = 0;
        Ok(self)
    }

    /// Leaves what has arrived to the next process.
    pub(crate) fn leave(self) {
        if is_named(&self.path) {
            let _ = self.path.keep();
        }
    }

    /// Stores the object if it has the content that its name says; otherwise throws it away.
    pub(crate) fn finish(mut self, store: &Store) -> Result<Arrival> {
        self.file.flush().map_err(StoreError::io(&self.path))?;
        let size = self.need.size.unwrap_or(self.arrived);
        if size != self.arrived || hash_file(&self.path)? != (self.need.digest, size) {
            // Dropping the path removes the file.
            return Ok(Arrival::Wrong);
        }
        let object = store.object(self.need.digest);
        make_parent(&object)?;
        move_into_place(self.path, &object)?;
        read_only(&object)?;
        Ok(Arrival::Stored)
    }
}

fn is_named(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Results that are to be sent to a remote cache, in a file each: what a run could not send, the next one does.
impl Store {
    fn unsent(&self) -> PathBuf {
        self.root.join("unsent")
    }

    /// Notes that the result of `key` is to be sent to the remote cache at `address`.
    pub(crate) fn note_unsent(&self, key: Digest, address: &str) -> Result<()> {
        self.write_derived(&self.unsent().join(key.hex()), address.as_bytes())
    }

    /// The results that are to be sent to `address`. Forgets those that are gone.
    pub(crate) fn unsent_to(&self, address: &str) -> Vec<Digest> {
        let Ok(entries) = self.named_by_digest("unsent", 0) else { return Vec::new() };
        let is_meant = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text == address);
        let mut keys = Vec::new();
        for (path, key) in entries {
            if !look_up(&self.receipt_path(key)).is_ok_and(|found| found.is_file()) {
                let _ = disk::remove_file(&path);
            } else if is_meant(&path) {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        keys
    }

    /// Forgets that the result of `key` is to be sent.
    pub(crate) fn forget_unsent(&self, key: Digest) {
        // If it stays, the next run asks the remote cache once more.
        let _ = disk::remove_file(&self.unsent().join(key.hex()));
    }

    /// Whether an object has the content that its name says.
    pub(crate) fn is_intact_object(&self, digest: Digest) -> bool {
        self.is_whole(digest)
    }
}
