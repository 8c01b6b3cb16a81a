//! A file on its way: which of its bytes have arrived, remembered on disk. Does not know the network.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use super::listing::RemoteFile;

/// How a file can be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    /// Bytes in all, if known.
    pub(crate) size: Option<u64>,
    /// The server's name for this content.
    pub(crate) etag: Option<String>,
    /// Bytes of a chunk; nothing if the server sends a file only as a whole.
    pub(crate) chunk: Option<u64>,
}

impl Plan {
    /// The bytes of chunk `index`.
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        let end = self.size.unwrap_or(u64::MAX);
        let chunk = self.chunk.unwrap_or(end);
        let start = chunk.saturating_mul(index as u64);
        start..start.saturating_add(chunk).min(end)
    }

    fn chunks(&self) -> usize {
        match (self.size, self.chunk) {
            (Some(size), Some(chunk)) => size.div_ceil(chunk.max(1)) as usize,
            (Some(0), None) => 0,
            _ => 1,
        }
    }
}

/// A file on its way.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: RemoteFile,
    pub(crate) plan: Plan,
    pub(crate) path: PathBuf,
    state: PathBuf,
    /// Whether `plan` had to be asked for; else it follows from the listing, and the length of `path` says the rest.
    asked: bool,
    done: Vec<AtomicU64>,
    forgotten: AtomicBool,
}

/// What is remembered.
#[derive(Serialize, Deserialize)]
struct State {
    plan: Plan,
    done: Vec<u64>,
}

impl Part {
    /// Goes on with what lies in `folder`, or begins: `ask` finds out how the file can be had.
    pub(crate) fn open<E: From<io::Error>>(
        folder: &Path,
        file: RemoteFile,
        chunk: u64,
        ask: impl FnOnce(&RemoteFile) -> Result<Plan, E>,
    ) -> Result<Self, E> {
        // Named by what it is: a source that lists something else now begins anew.
        let name = blake3::hash(format!("{} {:?} {:?}", file.url, file.size, file.etag).as_bytes()).to_hex();
        let path = folder.join(format!("{}.part", &name[..32]));
        let state = path.with_extension("json");
        if let Some(size) = file.size.filter(|size| *size <= chunk) {
            let plan = Plan { url: file.url.clone(), size: Some(size), etag: file.etag.clone(), chunk: Some(chunk) };
            let there = fs::metadata(&path).map_or(0, |data| data.len());
            let done = (0..plan.chunks()).map(|_| AtomicU64::new(if there <= size { there } else { 0 })).collect();
            return Ok(Self { file, plan, path, state, asked: false, done, forgotten: AtomicBool::default() });
        }
        let known = fs::read(&state).ok().and_then(|text| serde_json::from_slice::<State>(&text).ok());
        let known = known
            .filter(|known| known.plan.url == file.url && known.done.len() == known.plan.chunks() && path.is_file());
        let (plan, done) = if let Some(State { plan, done }) = known {
            (plan, done)
        } else {
            let plan = ask(&file)?;
            let done = vec![0; plan.chunks()];
            (plan, done)
        };
        let done = done.into_iter().map(AtomicU64::new).collect();
        Ok(Self { file, plan, path, state, asked: true, done, forgotten: AtomicBool::default() })
    }

    /// The chunks of which something is missing.
    pub(crate) fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.done.len()).filter(|index| {
            let range = self.plan.range(*index);
            self.plan.size.is_none() || self.arrived(*index) < range.end - range.start
        })
    }

    /// How many bytes of a chunk have arrived.
    pub(crate) fn arrived(&self, index: usize) -> u64 {
        self.done[index].load(Ordering::Acquire)
    }

    /// So many bytes of a chunk lie in the file.
    pub(crate) fn set_arrived(&self, index: usize, bytes: u64) {
        self.done[index].store(bytes, Ordering::Release);
    }

    /// How many bytes have arrived.
    pub(crate) fn bytes(&self) -> u64 {
        (0..self.done.len()).map(|index| self.arrived(index)).sum()
    }

    /// Remembers what has arrived: the bytes reach the disk before the note that says so.
    pub(crate) fn remember(&self) -> io::Result<()> {
        if self.forgotten.load(Ordering::Acquire) {
            // Other connections may still have been writing.
            self.forget();
            return Ok(());
        }
        if !self.asked || !self.path.is_file() {
            return Ok(());
        }
        let done = (0..self.done.len()).map(|index| self.arrived(index)).collect();
        File::open(&self.path)?.sync_data()?;
        let text = serde_json::to_vec(&State { plan: self.plan.clone(), done })?;
        let new = self.state.with_extension("new");
        fs::write(&new, text)?;
        File::open(&new)?.sync_data()?;
        fs::rename(&new, &self.state)
    }

    /// Forgets everything: the next run begins anew.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Ordering::Release);
        for path in [&self.path, &self.state] {
            // What is not there is forgotten already.
            let _ = fs::remove_file(path);
        }
    }
}
