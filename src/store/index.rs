//! A derived index: which receipt a stage of a pipeline had last, what receipts say in short, and digests of the user's own
//! files. The only place that knows sled. Losing it costs time and explanations, never a result.
//!
//! sled lets one process at a time open a database. So it is open only for the moments of reading (once, at the
//! start, what this pipeline may need) and writing (when something is new), and if another run holds it for long, this one
//! goes on without.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use super::{Digest, Hit, Result, Store};

/// How long to wait while another process reads or writes.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often to write in a long run.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the index knew at the start, and what is new since.
#[derive(Debug)]
pub(crate) struct Index {
    path: PathBuf,
    known: RefCell<HashMap<Vec<u8>, Vec<u8>>>,
    new: RefCell<Vec<(Vec<u8>, Vec<u8>)>>,
    saved: Cell<Instant>,
}

/// What a pipeline may need to know.
#[derive(Debug, Default)]
pub(crate) struct Scope<'a> {
    /// The names under which it is known over runs.
    pub(crate) pipelines: Vec<String>,
    /// The user's own files and folders.
    pub(crate) sources: Vec<&'a Path>,
}

/// By what a file is known not to have been touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stamp {
    pub(super) size: u64,
    /// Nanoseconds since 1970.
    pub(super) modified: u128,
    pub(super) inode: u64,
}

impl Index {
    /// Reads what is `scope` from the index of `store`, building it from the receipts if there is none.
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

    /// Throws the index away and makes it again; returns how many stages it knows then.
    pub(crate) fn rebuild(store: &Store) -> Result<usize> {
        let path = store.root.join("index.sled");
        super::files::remove_all(&path)?;
        let index = Self::open(store, &Scope::default());
        let stages = index.known.borrow().keys().filter(|key| key.starts_with(b"last\0")).count();
        Ok(stages)
    }

    fn fill(&self, store: &Store) {
        let mut receipts: Vec<_> = store.receipts().collect();
        receipts.sort_by_key(|(_, receipt)| receipt.timing.finished);
        for (key, receipt) in receipts {
            self.set_last(&receipt.pipeline, &receipt.stage, key);
        }
        self.save();
    }

    /// The key that a stage had when it was last run or found.
    pub(crate) fn last(&self, pipeline: &str, stage: &str) -> Option<Digest> {
        let known = self.known.borrow();
        Digest::from_hex(std::str::from_utf8(known.get(&stage_id(pipeline, stage))?).ok()?)
    }

    pub(crate) fn set_last(&self, pipeline: &str, stage: &str, key: Digest) {
        self.set(stage_id(pipeline, stage), key.hex().into_bytes());
    }

    /// What the receipt of `key` says, if its file has not been touched since that was noted.
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

    /// What came out of the last run of a pipeline, in a word.
    pub(crate) fn last_run(&self, pipeline: &str) -> Option<Digest> {
        let known = self.known.borrow();
        Digest::from_hex(std::str::from_utf8(known.get(&run_id(pipeline))?).ok()?)
    }

    pub(crate) fn set_last_run(&self, pipeline: &str, content: Digest) {
        self.set(run_id(pipeline), content.hex().into_bytes());
    }

    /// The digest of a file that has not been touched since it was hashed.
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

    fn set(&self, key: Vec<u8>, value: Vec<u8>) {
        if self.known.borrow().get(&key) != Some(&value) {
            self.known.borrow_mut().insert(key.clone(), value.clone());
            self.new.borrow_mut().push((key, value));
        }
    }

    /// Writes what is new if that was not done for a while: a run that is killed forgets little.
    pub(crate) fn save_sometimes(&self) {
        if self.saved.get().elapsed() > INTERVAL {
            self.save();
        }
    }

    /// Writes what is new. If that is not possible now, the next call tries again.
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
            Err(error) => tracing::debug!(%error, "the index was not written"),
        }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        self.save();
    }
}

/// Everything below the names of what is scope, and what is known of the keys found there.
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

fn open(path: &Path) -> Option<sled::Db> {
    let start = Instant::now();
    loop {
        let error = match sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(16 << 20).open() {
            Ok(db) => return Some(db),
            Err(error) => error,
        };
        match OpenError::of(&error) {
            OpenError::Busy if start.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(10));
                continue;
            }
            // The next process to open it builds a new one.
            OpenError::Damaged => drop(super::files::remove_all(path)),
            OpenError::Busy | OpenError::Disk => {}
        }
        tracing::debug!(%error, "working without the index");
        return None;
    }
}

/// Why the index can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpenError {
    /// Another process has it open, which never takes long.
    Busy,
    /// The disk refuses. The index may be sound.
    Disk,
    /// Its content is not an index, or one of another version of sled.
    Damaged,
}

impl OpenError {
    fn of(error: &sled::Error) -> Self {
        use std::io::ErrorKind;
        match error {
            sled::Error::Io(error) => match error.kind() {
                // How sled reports a lock that another process holds. Errors of the system have a kind of their own.
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
    [b"made\0".as_slice(), &key.bytes()].concat()
}

fn run_id(pipeline: &str) -> Vec<u8> {
    format!("run\0{pipeline}").into_bytes()
}

fn file_id(path: &Path) -> Vec<u8> {
    [b"file\0", path.as_os_str().as_encoded_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn trouble(path: &Path) -> OpenError {
        OpenError::of(&sled::Config::new().path(path).open().unwrap_err())
    }

    #[test]
    fn only_a_damaged_index_is_deleted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("index.sled");
        let held = open(&path).unwrap();
        assert_eq!(trouble(&path), OpenError::Busy);
        assert!(open(&path).is_none());
        assert!(path.join("db").is_file(), "somebody uses it");
        drop(held);

        let db = std::fs::read(path.join("db")).unwrap();
        std::fs::remove_file(path.join("db")).unwrap();
        std::fs::create_dir(path.join("db")).unwrap();
        assert_eq!(trouble(&path), OpenError::Disk);
        assert!(open(&path).is_none() && path.exists());
        std::fs::remove_dir(path.join("db")).unwrap();
        std::fs::write(path.join("db"), db).unwrap();

        std::fs::write(path.join("conf"), "no settings of a database").unwrap();
        assert_eq!(trouble(&path), OpenError::Damaged);
        assert!(open(&path).is_none() && !path.exists());
        assert!(open(&path).is_some());
    }
}
