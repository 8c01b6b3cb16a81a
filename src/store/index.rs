//! A derived index: the last key of each stage, summaries of receipts, and digests of the user's files. The only file that uses
//! sled. Losing the index costs time and explanations, never a result.
//!
//! sled lets only one process open a database at a time. So the index is opened briefly: once at the start, to read the entries
//! that this pipeline may need, and whenever there are new entries to write. If another run keeps it open for too long, this run
//! continues without the index.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs::TryLockError,
    io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Digest, Hit, Result, Store, StoreError, files::open_lock, stamp::Stamp};

/// How long to wait for another process that has the index open.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to write during a long run.
const INTERVAL: Duration = Duration::from_secs(5);

/// The entries that were read at the start, and those that are not written yet.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    known: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    new: RefCell<Vec<(Vec<u8>, Vec<u8>)>>,
    saved: Cell<Instant>,
}

/// The entries that a pipeline may need.
#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    /// The identifiers of its points, and its name.
    pub(crate) pipelines: Vec<String>,
    /// The user's files and folders that it reads.
    pub(crate) sources: Vec<&'a Path>,
}

impl Index {
    /// Reads the entries in `scope` from the index of `store`. Builds the index from the receipts if there is none.
    pub(crate) fn open(store: &Store, scope: &Scope<'_>) -> Self {
        let path = store.root.join("index.sled");
        let fresh = !path.exists();
        let known = open(&path).map(|db| read(&db, scope)).unwrap_or_default();
        let (known, saved) = (RefCell::new(known), Cell::new(Instant::now()));
        let index = Self { path, known, new: RefCell::default(), saved };
        if fresh {
            index.fill(store);
        }
        index
    }

    /// Deletes the index and builds it from the receipts. Returns the number of stages in it.
    pub(crate) fn rebuild(store: &Store) -> Result<usize> {
        move_away(&store.root.join("index.sled"), &store.tmp()?)?;
        let index = Self::open(store, &Scope::default());
        let stages = index.known.borrow().keys().filter(|key| key.starts_with(b"last\0")).count();
        Ok(stages)
    }

    /// Fills a new index from the receipts.
    fn fill(&self, store: &Store) {
        let mut receipts: Vec<_> = store.receipts().collect();
        receipts.sort_by_key(|(_, receipt)| receipt.timing.finished);
        for (key, receipt) in receipts {
            self.set_last(&receipt.pipeline, &receipt.stage, key);
        }
        self.save();
    }

    /// The key of a stage when it last ran or was found in the cache.
    pub(crate) fn last(&self, pipeline: &str, stage: &str) -> Option<Digest> {
        let known = self.known.borrow();
        Digest::from_hex(std::str::from_utf8(known.get(&stage_id(pipeline, stage))?).ok()?)
    }

    pub(crate) fn set_last(&self, pipeline: &str, stage: &str, key: Digest) {
        self.set(stage_id(pipeline, stage), key.hex().into_bytes());
    }

    /// The summary of the receipt of `key`, if the file of the receipt is unchanged.
    pub(super) fn hit(&self, key: Digest, stamp: Stamp) -> Option<Hit> {
        let known = self.known.borrow();
        let (old, hit): (Stamp, Hit) = postcard::from_bytes(known.get(&hit_id(key))?).ok()?;
        (old == stamp).then_some(hit)
    }

    pub(super) fn set_hit(&self, key: Digest, stamp: Stamp, hit: &Hit) {
        if let Ok(bytes) = postcard::to_allocvec(&(stamp, hit)) {
            self.set(hit_id(key), bytes);
        }
    }

    /// A digest of the keys of all stages in the last run of a pipeline.
    pub(crate) fn last_run(&self, pipeline: &str) -> Option<Digest> {
        let known = self.known.borrow();
        Digest::from_hex(std::str::from_utf8(known.get(&run_id(pipeline))?).ok()?)
    }

    pub(crate) fn set_last_run(&self, pipeline: &str, content: Digest) {
        self.set(run_id(pipeline), content.hex().into_bytes());
    }

    /// The digest of a file, if the file is unchanged since it was hashed.
    pub(super) fn file_digest(&self, path: &Path, stamp: Stamp) -> Option<Digest> {
        let known = self.known.borrow();
        let (old, digest): (Stamp, Digest) = postcard::from_bytes(known.get(&file_id(path))?).ok()?;
        (old == stamp).then_some(digest)
    }

    pub(super) fn set_file_digest(&self, path: &Path, stamp: Stamp, digest: Digest) {
        if let Ok(bytes) = postcard::to_allocvec(&(stamp, digest)) {
            self.set(file_id(path), bytes);
        }
    }

    /// Adds an entry, to be written with the next [`Self::save`].
    fn set(&self, key: Vec<u8>, value: Vec<u8>) {
        if self.known.borrow().get(&key) != Some(&value) {
            self.known.borrow_mut().insert(key.clone(), value.clone());
            self.new.borrow_mut().push((key, value));
        }
    }

    /// Writes new entries if the last write was some time ago, so that a run that is killed loses few of them.
    pub(crate) fn save_sometimes(&self) {
        if self.saved.get().elapsed() > INTERVAL {
            self.save();
        }
    }

    /// Writes new entries. If the index can't be opened, the next call tries again.
    pub(crate) fn save(&self) {
        self.saved.set(Instant::now());
        let mut new = self.new.borrow_mut();
        if new.is_empty() {
            return;
        }
        let Some(db) = open(&self.path) else { return };
        let mut batch = sled::Batch::default();
        for (key, value) in new.iter() {
            batch.insert(key.as_slice(), value.as_slice());
        }
        match db.apply_batch(batch).and_then(|()| db.flush()) {
            Ok(_) => new.clear(),
            Err(error) => tracing::debug!(%error, "could not write the index"),
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.save();
    }
}

/// The entries in `scope`: the last key of each stage with the summary of its receipt, the last runs, and file digests.
fn read(db: &sled::Db, scope: &Scope<'_>) -> HashMap<Vec<u8>, Vec<u8>> {
    let mut known = HashMap::new();
    for pipeline in &scope.pipelines {
        for (id, key) in db.scan_prefix(stage_id(pipeline, "")).flatten() {
            let hit = std::str::from_utf8(&key).ok().and_then(Digest::from_hex).map(hit_id);
            if let Some(id) = hit
                && let Ok(Some(hit)) = db.get(&id)
            {
                known.insert(id, hit.to_vec());
            }
            known.insert(id.to_vec(), key.to_vec());
        }
        let runs = db.scan_prefix(run_id(pipeline)).flatten();
        known.extend(runs.map(|(id, content)| (id.to_vec(), content.to_vec())));
    }
    for path in &scope.sources {
        let files = db.scan_prefix(file_id(path)).flatten();
        known.extend(files.map(|(id, stamp)| (id.to_vec(), stamp.to_vec())));
    }
    known
}

/// Removes the database. Another process that has it open goes on with what was moved, so that this can't fail half-way; what it
/// writes there is lost.
fn move_away(path: &Path, tmp: &Path) -> Result<()> {
    std::fs::create_dir_all(tmp).map_err(StoreError::io(tmp))?;
    let old = tempfile::TempDir::new_in(tmp).map_err(StoreError::io(tmp))?;
    match std::fs::rename(path, old.path().join("index.sled")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_path_buf(), source: error })
        }
        // What can't be deleted when `old` goes out of scope, garbage collection deletes.
        _ => Ok(()),
    }
}

/// Opens the database. `None` if another process has it open for too long, or if it can't be read.
fn open(path: &Path) -> Option<sled::Db> {
    if SystemTime::now() < UNIX_EPOCH {
        // sled stops the program at such times.
        return None;
    }
    let start = Instant::now();
    loop {
        let error = match open_alone(path) {
            Ok(db) => return Some(db),
            Err(error) => error,
        };
        match OpenError::of(&error) {
            OpenError::Busy if start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            // The next process to open it builds a new one.
            OpenError::Damaged => drop(move_away(path, &path.with_file_name("tmp"))),
            OpenError::Busy | OpenError::Disk => {}
        }
        tracing::debug!(%error, "working without the index");
        return None;
    }
}

/// Opens the database, or makes it, while no other process does: sled writes its settings before it takes its own lock, so that
/// two processes that start at once could read half of them.
fn open_alone(path: &Path) -> sled::Result<sled::Db> {
    let lock = open_lock(&path.with_file_name("locks").join("index")).ok().flatten();
    if let Some(lock) = &lock
        && matches!(lock.try_lock(), Err(TryLockError::WouldBlock))
    {
        return Err(io::Error::other("another process is opening it").into());
    }
    sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(16 << 20).open()
}

/// Why the index can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenError {
    /// Another process has it open, usually only briefly.
    Busy,
    /// An error of the disk. The index itself may be intact.
    Disk,
    /// The content is not an index, or was written by a different version of sled.
    Damaged,
}

impl OpenError {
    fn of(error: &sled::Error) -> Self {
        use io::ErrorKind;
        match error {
            sled::Error::Io(error) => match error.kind() {
                // sled reports a lock held by another process as `Other`. Errors of the system have more specific kinds.
                ErrorKind::Other => Self::Busy,
                ErrorKind::UnexpectedEof | ErrorKind::InvalidData => Self::Damaged,
                _ => Self::Disk,
            },
            _ => Self::Damaged,
        }
    }
}

fn stage_id(pipeline: &str, stage: &str) -> Vec<u8> {
    format!("last\0{pipeline}\0{stage}").into_bytes()
}

fn hit_id(key: Digest) -> Vec<u8> {
    [b"receipt\0".as_slice(), &key.bytes()].concat()
}

fn run_id(pipeline: &str) -> Vec<u8> {
    format!("run\0{pipeline}").into_bytes()
}

fn file_id(path: &Path) -> Vec<u8> {
    [b"source\0", path.as_os_str().as_encoded_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn open_error(path: &Path) -> OpenError {
        OpenError::of(&sled::Config::new().path(path).open().unwrap_err())
    }

    #[test]
    fn one_process_at_a_time_makes_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.sled");
        let lock = open_lock(&folder.path().join("locks/index")).unwrap().unwrap();
        lock.lock().unwrap();
        assert_eq!(OpenError::of(&open_alone(&path).unwrap_err()), OpenError::Busy);
        assert!(!path.exists());
        lock.unlock().unwrap();
        assert!(open(&path).is_some());
    }

    #[test]
    fn only_a_damaged_index_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.sled");
        let held = open(&path).unwrap();
        assert_eq!(open_error(&path), OpenError::Busy);
        assert!(open(&path).is_none());
        assert!(path.join("db").is_file(), "it is in use, so it must not be deleted");
        drop(held);

        let db = std::fs::read(path.join("db")).unwrap();
        std::fs::remove_file(path.join("db")).unwrap();
        std::fs::create_dir(path.join("db")).unwrap();
        assert_eq!(open_error(&path), OpenError::Disk);
        assert!(open(&path).is_none() && path.exists());
        std::fs::remove_dir(path.join("db")).unwrap();
        std::fs::write(path.join("db"), db).unwrap();

        std::fs::write(path.join("conf"), "not the settings of a database").unwrap();
        assert_eq!(open_error(&path), OpenError::Damaged);
        assert!(open(&path).is_none() && !path.exists());
        assert!(open(&path).is_some());
    }
}
