//! One lock per key, so that two runs that share a cache never make the same result twice.

use std::{
    fs::{File, TryLockError},
    time::Duration,
};

use super::{
    Digest, Store,
    error::{Result, StoreError},
    files::open_lock,
};

/// Held while a stage runs. The operating system releases it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct KeyLock(#[expect(dead_code, reason = "held, not read")] File);

impl Store {
    /// Takes the lock of `key`. While another run holds it, calls `waiting` once and waits. Dropping the future stops waiting.
    pub(crate) async fn lock(&self, key: Digest, mut waiting: impl FnMut()) -> Result<KeyLock> {
        let path = self.root.join("locks").join(key.hex());
        let file = open_lock(&path)?;
        let mut reported = false;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(KeyLock(file)),
                Err(TryLockError::WouldBlock) => {
                    if !reported {
                        waiting();
                        reported = true;
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
            }
        }
    }

    /// Whether a run is making the result of this key now.
    pub(crate) fn is_being_made(&self, key: Digest) -> bool {
        let file = File::open(self.root.join("locks").join(key.hex()));
        file.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }
}
