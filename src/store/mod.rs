//! The content-addressed store. The truth is in files; the index is derived from them.
//! Knows nothing of pipelines' syntax, processes or the terminal.
//!
//! ```text
//! cache/
//!   CACHEDIR.TAG VERSION
//!   objects/ab/cdef...      file contents by BLAKE3, read-only; a tree's listing is an object too
//!   trees/ab/cdef.../       a tree as a folder: hard links to objects, made again if missing
//!   receipts/ab/cdef....json what a stage produced, by key
//!   work/<key>/             a stage in progress: job.json, out/, checkpoint/, metrics.jsonl, log, lock
//!   locks/<key>             advisory file locks, held while a stage is made; `gc` is that of throwing things away
//!   live/                   what running runs use
//!   runs/<id>.json          past runs: the whole pipeline, and what came out
//!   tmp/                    files that are being written; renamed into place when whole
//!   notes/                  derived: what was looked at to find a pipeline up to date
//!   index.sled/             derived: deleting it loses nothing
//! ```
//! Everything is written to `tmp/`, flushed and renamed. At any moment there are only whole objects and
//! whole receipts, and a receipt appears only after the objects that it names: its name is the one that is waited for.

mod digest;
mod error;
mod files;
mod gc;
mod hit;
mod index;
mod lease;
mod lock;
mod manifest;
mod objects;
mod receipt;
mod runs;
mod source;
mod stats;
mod tree;
mod verify;
mod work;

use std::{
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub(crate) use digest::Digest;
pub(crate) use error::StoreError;
use error::{LAYOUT_VERSION, Result};
use files::{move_into_place, sync_folder};
pub(crate) use gc::GcReport;
pub(crate) use hit::Hit;
pub(crate) use index::{Index, Wanted};
pub(crate) use lease::Lease;
pub(crate) use manifest::{Change, Manifest};
pub(crate) use receipt::{Receipt, Timing};
pub(crate) use runs::{KILLED, RUNNING, RunPoint, RunRecord, RunStage, now};
pub(crate) use source::digest as source_digest;
pub(crate) use stats::Stats;
pub(crate) use tree::{TreeFile, TreeRef};
pub(crate) use verify::VerifyReport;
pub(crate) use work::Work;

/// The cache folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
}

impl Store {
    /// The cache at `root`, if there is one that this version can read.
    pub(crate) fn existing(root: &Path) -> Option<Self> {
        let root = root.canonicalize().ok()?;
        let version = std::fs::read_to_string(root.join("VERSION")).ok()?;
        (version.trim() == LAYOUT_VERSION).then_some(Self { root })
    }

    /// Opens the cache at `root`, making it if there is none.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        std::fs::create_dir_all(root).map_err(StoreError::io(root))?;
        let root = root.canonicalize().map_err(StoreError::io(root))?;
        let store = Self { root };
        let version = store.root.join("VERSION");
        match std::fs::read_to_string(&version) {
            Ok(found) if found.trim() == LAYOUT_VERSION => return Ok(store),
            Ok(found) => return Err(StoreError::Version { path: store.root, found: found.trim().into() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { path: version, source }),
        }
        for folder in ["objects", "trees", "receipts", "work", "locks", "tmp"] {
            let path = store.root.join(folder);
            std::fs::create_dir_all(&path).map_err(StoreError::io(&path))?;
        }
        // https://bford.info/cachedir/: backup programs leave such a folder out.
        store.write(
            &store.root.join("CACHEDIR.TAG"),
            b"Signature: 8a477f597d28d172789f06886806bc55\n# The cache of imp-flow.\n",
        )?;
        store.write(&version, LAYOUT_VERSION.as_bytes())?;
        Ok(store)
    }

    fn path(&self, folder: &str, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(folder).join(&hex[..2]).join(&hex[2..])
    }

    /// Where things are until they are whole.
    fn tmp(&self) -> Result<PathBuf> {
        let folder = self.root.join("tmp");
        std::fs::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        Ok(folder)
    }

    /// A file in `tmp/`, to be renamed into place.
    fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let folder = self.tmp()?;
        // As the person's umask has it: a cache may be shared.
        let mode = std::fs::Permissions::from_mode(0o666);
        tempfile::Builder::new().permissions(mode).tempfile_in(&folder).map_err(StoreError::io(&folder))
    }

    /// The folders whose times tell whether a receipt and a tree may have gone.
    pub(crate) fn folders_of(&self, key: Digest, tree: Digest) -> [PathBuf; 2] {
        [("receipts", key), ("trees", tree)].map(|(folder, digest)| self.root.join(folder).join(&digest.hex()[..2]))
    }

    /// Where a note on `question` lies.
    pub(crate) fn note(&self, question: Digest) -> PathBuf {
        self.root.join("notes").join(question.hex())
    }

    /// Writes a whole file or nothing; it may be lost when the machine stops.
    pub(crate) fn write_derived(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = self.temporary()?;
        file.write_all(bytes).map_err(StoreError::io(path))?;
        move_into_place(file.into_temp_path(), path)
    }

    /// Writes a whole file or nothing. When it returns, the file and all that was renamed before it have reached the disk.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.write_atomic(path, bytes)?;
        sync_folder(path)
    }

    /// The same, but the file's name may take a moment to reach the disk.
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = self.temporary()?;
        file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(StoreError::io(path))?;
        move_into_place(file.into_temp_path(), path)
    }
}
