//! A derived index: which receipt a stage of a pipeline had last, and digests of the user's own files.
//! The only place that knows sled. Losing it costs time and explanations, never a result.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Digest, Store};

/// The index, or nothing: if another process has it open, or it can't be read, the store works without it.
#[derive(Debug)]
pub(crate) struct Index(Option<sled::Db>);

/// What is remembered of a user's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: u128,
    pub(super) inode: u64,
}

impl Index {
    /// Opens the index of `store`, building it from the receipts if there is none.
    pub(crate) fn open(store: &Store) -> Self {
        let path = store.root.join("index.sled");
        let fresh = !path.exists();
        let opened = sled::Config::new().path(&path).mode(sled::Mode::LowSpace).cache_capacity(16 << 20).open();
        match opened {
            Ok(db) => {
                let index = Self(Some(db));
                if fresh {
                    index.rebuild(store);
                }
                index
            }
            Err(error) => {
                tracing::debug!(%error, "working without the index");
                Self(None)
            }
        }
    }

    fn rebuild(&self, store: &Store) {
        let mut receipts: Vec<_> = store.receipts().collect();
        receipts.sort_by_key(|(_, receipt)| receipt.timing.finished);
        for (key, receipt) in receipts {
            self.set_last(&receipt.pipeline, &receipt.stage, key);
        }
    }

    /// The key that a stage had when it was last run or found.
    pub(crate) fn last(&self, pipeline: &str, stage: &str) -> Option<Digest> {
        let bytes = self.0.as_ref()?.get(stage_id(pipeline, stage)).ok()??;
        Digest::from_hex(std::str::from_utf8(&bytes).ok()?)
    }

    pub(crate) fn set_last(&self, pipeline: &str, stage: &str, key: Digest) {
        if let Some(db) = &self.0
            && self.last(pipeline, stage) != Some(key)
            && let Err(error) = db.insert(stage_id(pipeline, stage), key.hex().as_bytes())
        {
            tracing::debug!(%error, "the index was not updated");
        }
    }

    /// The digest of a file that has not been touched since it was hashed.
    pub(super) fn file_digest(&self, path: &Path, stamp: Stamp) -> Option<Digest> {
        let bytes = self.0.as_ref()?.get(file_id(path)).ok()??;
        let (known, digest): (Stamp, Digest) = serde_json::from_slice(&bytes).ok()?;
        (known == stamp).then_some(digest)
    }

    pub(super) fn set_file_digest(&self, path: &Path, stamp: Stamp, digest: Digest) {
        if let Some(db) = &self.0
            && let Ok(bytes) = serde_json::to_vec(&(stamp, digest))
            && let Err(error) = db.insert(file_id(path), bytes)
        {
            tracing::debug!(%error, "the index was not updated");
        }
    }
}

fn stage_id(pipeline: &str, stage: &str) -> Vec<u8> {
    format!("last\0{pipeline}\0{stage}").into_bytes()
}

fn file_id(path: &Path) -> Vec<u8> {
    [b"file\0", path.as_os_str().as_encoded_bytes()].concat()
}
