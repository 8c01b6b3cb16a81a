//! A remote cache: a second level beside the store, which several machines share. Results are taken from it before they are made, and
//! sent to it after. The local store stays the truth: whatever is wrong with a remote cache costs a warning and nothing else.
//! Independent of pipelines, scheduling and the terminal.
//!
//! ```text
//! PREFIX/
//!   imp-flow-cache.json     the version of this layout
//!   objects/ab/cdef...      file contents by BLAKE3, as in the store; a list of files is an object too
//!   receipts/ab/cdef....json what a stage produced, by key; written last, after the objects that it names
//!   runs/<id>.json          what a run used, for garbage collection
//!   leases/gc               who collects garbage now
//!   leases/last             who did so last
//!   tmp/                    of folders only: files that are being written
//! ```
//! Everything that is read from there is input from outside: receipts and lists of files are checked (`store/foreign.rs`), contents
//! have to be what their names say, sizes have limits.

mod address;
mod folder;
mod gc;
mod health;
mod lease;
mod names;
mod overview;
mod parallel;
mod place;
mod pull;
mod push;
mod s3;
mod uses;

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

pub(crate) use address::{Access, Address, RemoteSettings};
use folder::Folder;
pub(crate) use gc::{Keep, RemoteGc};
use health::Health;
pub(crate) use overview::RemoteStats;
use place::{Condition, Content, Fault, Place, Small, read_small};
pub(crate) use pull::{Pulled, Want};
pub(crate) use push::Pushed;
use s3::Objects;
pub(crate) use uses::Uses;

use crate::store::{Digest, LARGEST_RECEIPT, Manifest, Receipt, StoreError};

/// The version of the layout.
const LAYOUT: &str = "{\"imp-flow-cache\": 1}\n";

/// A remote cache.
pub(crate) struct Remote {
    address: Address,
    access: Access,
    /// `None` until it is first used, or if it can't be reached.
    place: Mutex<Option<Arc<dyn Place>>>,
    patience: Duration,
    health: Health,
    /// Bytes that are still to arrive here.
    arriving: AtomicU64,
    /// Whether whoever waits has gone.
    stop: Arc<AtomicBool>,
}

/// Why something could not be done with a remote cache.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    /// The remote cache as a whole can't be used.
    #[error("{0}")]
    Place(String),
    /// One result in it can't be used.
    #[error("{0}")]
    Result(String),
    /// Something is wrong here.
    #[error(transparent)]
    Here(#[from] StoreError),
    #[error("stopped")]
    Stopped,
}

impl From<Fault> for Trouble {
    fn from(Fault(what): Fault) -> Self {
        Self::Place(what)
    }
}

/// How far a transfer is, in bytes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Meter {
    pub(crate) done: Arc<AtomicU64>,
    pub(crate) total: Arc<AtomicU64>,
    /// Threads that work on this machine's disk, such as on the digest of what has arrived. The remote cache is not waited for.
    here: Arc<AtomicUsize>,
}

/// A thread is at work on this machine's disk while it exists.
struct Here(Arc<AtomicUsize>);

impl Drop for Here {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Meter {
    /// Bytes that are done, and all.
    pub(crate) fn read(&self) -> (u64, u64) {
        (self.done.load(Relaxed), self.total.load(Relaxed))
    }

    /// Whether some thread works on this machine's disk now.
    pub(crate) fn is_busy_here(&self) -> bool {
        self.here.load(Relaxed) > 0
    }

    fn here(&self) -> Here {
        self.here.fetch_add(1, Relaxed);
        Here(self.here.clone())
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({})", self.address)
    }
}

impl Remote {
    /// The remote cache of these settings. Nothing is asked of it before it is used.
    pub(crate) fn new(settings: &RemoteSettings) -> Self {
        Self {
            address: settings.address.clone(),
            access: settings.access,
            place: Mutex::default(),
            patience: settings.patience,
            health: Health::default(),
            arriving: AtomicU64::new(0),
            stop: Arc::default(),
        }
    }

    /// Its address, for messages.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// Whether results are sent to it.
    pub(crate) fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// How long an answer is waited for at first.
    pub(crate) fn patience(&self) -> Duration {
        self.patience
    }

    /// Ends all transfers soon.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    /// Whether results can be sent to it, as far as this run knows.
    pub(crate) fn takes_results(&self) -> bool {
        self.is_writable() && !self.health.is_broken()
    }

    /// Whether asking for results is of use, as far as this run knows.
    pub(crate) fn has_answers(&self) -> bool {
        !self.health.is_tired()
    }

    /// How many results in it could not be used.
    pub(crate) fn bad(&self) -> usize {
        self.health.bad()
    }

    /// The warning that this run owes to the user, once.
    pub(crate) fn take_warning(&self) -> Option<String> {
        self.health.take_warning()
    }

    /// Notes what went wrong: a place that can't be used is left alone from now on.
    pub(crate) fn note(&self, trouble: &Trouble) {
        // What fails once everything is to end fails for that.
        if !self.stop.load(Relaxed) {
            self.health.note(&self.address, trouble);
        }
    }

    /// The receipt of `key`, if the remote cache has one that can be believed. `asked` is the manifest of the key, if it is known.
    pub(crate) fn receipt(&self, key: Digest, asked: Option<&Manifest>) -> Result<Option<Receipt>, Trouble> {
        let place = self.place()?;
        match read_small(&*place, &names::receipt(key), LARGEST_RECEIPT)? {
            None => Ok(None),
            Some(Small::TooLarge) => Err(self.distrust(key, "its receipt is too large")),
            Some(Small::Whole(bytes)) => {
                Receipt::from_elsewhere(&bytes, key, asked).map(Some).map_err(|what| self.distrust(key, &what))
            }
        }
    }

    /// What is wrong with the result of `key`. It is replaced when it is sent the next time.
    fn distrust(&self, key: Digest, what: &str) -> Trouble {
        self.health.distrust(key);
        Trouble::Result(what.into())
    }

    /// The place, opened when it is first used.
    fn place(&self) -> Result<Arc<dyn Place>, Trouble> {
        let mut place = self.place.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(place) = &*place {
            return Ok(place.clone());
        }
        let opened: Arc<dyn Place> = match &self.address {
            Address::Folder(root) => Arc::new(Folder::open(root)?),
            Address::Bucket(bucket) => Arc::new(Objects::open(bucket, self.patience, self.stop.clone())?),
        };
        self.check_layout(&*opened)?;
        Ok(place.insert(opened).clone())
    }

    /// Checks that it is a cache of this layout. Marks a new one.
    fn check_layout(&self, place: &dyn Place) -> Result<(), Fault> {
        match read_small(place, names::LAYOUT, 1 << 10)? {
            Some(Small::Whole(bytes)) if bytes.trim_ascii() == LAYOUT.trim().as_bytes() => Ok(()),
            Some(_) => Err(Fault("it was made by another version of imp-flow, or is something else".into())),
            None if self.is_writable() => {
                place.write(names::LAYOUT, &Content::Bytes(LAYOUT.as_bytes()), Condition::New).map(drop)
            }
            // Nobody has sent anything yet.
            None => Ok(()),
        }
    }
}
