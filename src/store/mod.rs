//! The content-addressed store. Its files are authoritative; the index is derived from them.
//! Independent of pipeline syntax, processes and the terminal.
//!
//! ```text
//! cache/
//!   CACHEDIR.TAG VERSION
//!   objects/ab/cdef...      file contents by BLAKE3, read-only; a tree's listing is an object too
//!   trees/ab/cdef.../       a tree as a folder: hard links to objects, recreated if missing
//!   receipts/ab/cdef....json what a stage produced, by key
//!   work/<key>/             a stage in progress: job.json, out/, checkpoint/, metrics.jsonl, log, lock
//!   work/arrays/            scripts of arrays of jobs, with links to the logs of their stages
//!   locks/<key>             advisory file locks, held while a stage runs; `gc` is the lock of garbage collection
//!   live/                   leases: what current runs use
//!   runs/<id>.json          past runs: the whole pipeline and its results
//!   tmp/                    files that are being written, renamed into place when complete
//!   unsent/<key>            results that are to be sent to a remote cache
//!   notes/                  derived: what a run checked to find a pipeline up to date
//!   stamps/                 derived: stamps of the folders and files of trees when they were last checked
//!   index.sled/             derived: deleting it loses nothing
//! ```
//! Everything is written to `tmp/`, flushed and renamed, so objects and receipts are complete at any moment.
//! A receipt is written last, after the objects that it names, and flushed to disk.

mod checked;
mod digest;
mod disk;
mod error;
mod export;
mod files;
mod foreign;
mod gc;
mod hit;
mod incoming;
mod index;
mod intact;
mod lease;
mod lock;
mod manifest;
mod mend;
mod objects;
mod origin;
mod privacy;
mod receipt;
mod runs;
mod seal;
mod source;
mod stamp;
mod stats;
mod tree;
mod verify;
mod work;

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub(crate) use digest::Digest;
pub(crate) use error::StoreError;
use error::{LAYOUT_VERSION, Result};
pub(crate) use files::{look_again, look_up, open, read};
use files::{move_into_place, sync_folder};
pub(crate) use foreign::{LARGEST_LISTING, LARGEST_RECEIPT, Need, listing_from_elsewhere, parse_listing};
pub(crate) use gc::GcReport;
pub(crate) use hit::Hit;
pub(crate) use incoming::{Arrival, Incoming};
pub(crate) use index::{Index, Scope};
pub(crate) use lease::Lease;
pub(crate) use lock::try_locks;
pub(crate) use manifest::{Change, FieldGroup, Manifest};
pub(crate) use mend::Mended;
pub(crate) use origin::{Origin, Repository};
pub(crate) use receipt::{Product, Provenance, Receipt, Timing};
pub(crate) use runs::{RunPoint, RunRecord, RunStage, RunState, StageState, now};
pub(crate) use source::digest as source_digest;
pub(crate) use stamp::Stamp;
pub(crate) use stats::Stats;
pub(crate) use tree::{TreeFile, TreeRef};
pub(crate) use verify::VerifyReport;
pub(crate) use work::{ARRAYS, SUBMISSION, Sessions, Work, idle_arrays};

/// The cache folder.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    root: PathBuf,
    /// Whether to try hard links; false in tests of disks without them.
    links: bool,
}

impl Store {
    /// The cache at `root`, if it exists and this version can read it.
    pub(crate) fn existing(root: &Path) -> Option<Self> {
        look_up(&root.join("VERSION")).ok()?;
        let root = root.canonicalize().ok()?;
        let version = std::fs::read_to_string(root.join("VERSION")).ok()?;
        (version.trim() == LAYOUT_VERSION).then_some(Self { root, links: true })
    }

    /// Whether a folder is a cache, of any version.
    pub(crate) fn is_at(root: &Path) -> bool {
        look_up(&root.join("VERSION")).is_ok_and(|found| found.is_file()) && root.join("trees").is_dir()
    }

    /// Opens the cache at `root`. Creates it if it does not exist.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        disk::create_dir_all(root).map_err(StoreError::io(root))?;
        let root = root.canonicalize().map_err(StoreError::io(root))?;
        let store = Self { root, links: true };
        let version = store.root.join("VERSION");
        match look_up(&version).and_then(|_| std::fs::read_to_string(&version)) {
            Ok(found) if found.trim() == LAYOUT_VERSION => return Ok(store),
            Ok(found) => return Err(StoreError::Version { path: store.root, found: found.trim().into() }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(StoreError::Io { path: version, source }),
        }
        for folder in ["objects", "trees", "receipts", "work", "locks", "tmp"] {
            let path = store.root.join(folder);
            disk::create_dir_all(&path).map_err(StoreError::io(&path))?;
        }
        // https://bford.info/cachedir/: backup programs skip folders with this file.
        store.write(
            &store.root.join("CACHEDIR.TAG"),
            b"Signature: 8a477f597d28d172789f06886806bc55\n# The cache of imp-flow.\n",
        )?;
        store.write(&version, LAYOUT_VERSION.as_bytes())?;
        Ok(store)
    }

    /// The path of an entry that is named by its digest.
    fn path(&self, folder: &str, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join(folder).join(&hex[..2]).join(&hex[2..])
    }

    /// The folder for files that are being written.
    fn tmp(&self) -> Result<PathBuf> {
        let folder = self.root.join("tmp");
        disk::create_dir_all(&folder).map_err(StoreError::io(&folder))?;
        Ok(folder)
    }

    /// A file in `tmp/`, to be renamed into place.
    fn temporary(&self) -> Result<tempfile::NamedTempFile> {
        let folder = self.tmp()?;
        // Permissions follow the umask, since a cache may be shared.
        let mode = std::fs::Permissions::from_mode(0o666);
        tempfile::Builder::new().permissions(mode).tempfile_in(&folder).map_err(StoreError::io(&folder))
    }

    /// The receipt, and the folders whose times change when the receipt or the tree is removed.
    pub(crate) fn places_of(&self, key: Digest, tree: Digest) -> [PathBuf; 3] {
        let [receipts, trees] = [("receipts", key), ("trees", tree)]
            .map(|(folder, digest)| self.root.join(folder).join(&digest.hex()[..2]));
        [self.receipt_path(key), receipts, trees]
    }

    /// The path of the note that answers `question`.
    pub(crate) fn note(&self, question: Digest) -> PathBuf {
        self.root.join("notes").join(question.hex())
    }

    /// Writes a derived file, completely or not at all. A power failure may lose it.
    pub(crate) fn write_derived(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.temporary()?;
        disk::write(file.as_file(), file.path(), bytes).map_err(StoreError::io(path))?;
        move_into_place(file.into_temp_path(), path)
    }

    /// Writes a file, completely or not at all. On return, this file and all files renamed before it are on disk.
    fn write(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        self.write_atomic(path, bytes)?;
        sync_folder(path)
    }

    /// Like [`Self::write`], but the file's name may reach the disk later.
    fn write_atomic(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let file = self.temporary()?;
        disk::write(file.as_file(), file.path(), bytes).map_err(StoreError::io(path))?;
        disk::sync(file.path()).map_err(StoreError::io(path))?;
        move_into_place(file.into_temp_path(), path)
    }
}
