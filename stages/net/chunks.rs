//! A partly downloaded file: records on disk which bytes have arrived. Independent of the network.

use std::{
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

use super::listing::RemoteFile;

/// How to download a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) url: String,
    /// Size in bytes, if known.
    pub(crate) size: Option<u64>,
    /// The server's strong `ETag` for this content.
    pub(crate) etag: Option<String>,
    /// The server's `Last-Modified` for this content.
    #[serde(default)]
    pub(crate) modified: Option<String>,
    /// Bytes per chunk; `None` if the server sends the file only as a whole.
    pub(crate) chunk: Option<u64>,
}

impl Plan {
    /// The byte range of chunk `index`.
    pub(crate) fn range(&self, index: usize) -> Range<u64> {
        let end = self.size.unwrap_or(u64::MAX);
        let chunk = self.chunk.unwrap_or(end);
        let start = chunk.saturating_mul(index as u64);
        start..start.saturating_add(chunk).min(end)
    }

    /// Whether a later response can be told apart from one with different content.
    pub(crate) fn has_validator(&self) -> bool {
        self.etag.is_some() || self.modified.is_some()
    }

    fn chunks(&self) -> usize {
        match (self.size, self.chunk) {
            (Some(size), Some(chunk)) => size.div_ceil(chunk.max(1)) as usize,
            (Some(0), None) => 0,
            _ => 1,
        }
    }
}

/// A partly downloaded file.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) file: RemoteFile,
    pub(crate) plan: Plan,
    pub(crate) path: PathBuf,
    state: PathBuf,
    /// Whether the server was asked for `plan`. A small listed file needs no request and no state: the length of `path`
    /// says how much has arrived.
    probed: bool,
    done: Vec<AtomicU64>,
    discarded: AtomicBool,
}

/// Whether an `ETag` changes with every byte of the content.
pub(crate) fn is_strong(etag: &str) -> bool {
    etag.starts_with('"')
}

/// Bytes of two responses are joined only if a validator, or a hash of the whole file, would show that the content changed.
fn resumable(plan: &Plan, file: &RemoteFile) -> bool {
    plan.chunk.is_some() && (plan.has_validator() || !file.checks.is_empty())
}

/// The state on disk.
#[derive(Serialize, Deserialize)]
struct State {
    plan: Plan,
    done: Vec<u64>,
}

impl Part {
    /// Resumes the download in `folder`, or starts one; `probe` asks the server how the file can be downloaded.
    pub(crate) fn open<E: From<io::Error>>(
        folder: &Path,
        file: RemoteFile,
        chunk: u64,
        probe: impl FnOnce(&RemoteFile) -> Result<Plan, E>,
    ) -> Result<Self, E> {
        // The name follows from the content: a source whose listing has changed starts over.
        let name = blake3::hash(format!("{} {:?} {:?}", file.url, file.size, file.etag).as_bytes()).to_hex();
        let path = folder.join(format!("{}.part", &name[..32]));
        let state = path.with_extension("json");
        if let Some(size) = file.size.filter(|size| *size <= chunk) {
            let etag = file.etag.clone().filter(|etag| is_strong(etag));
            let plan = Plan { url: file.url.clone(), size: Some(size), etag, modified: None, chunk: Some(chunk) };
            let length = if resumable(&plan, &file) { fs::metadata(&path).map_or(0, |data| data.len()) } else { 0 };
            let done = (0..plan.chunks()).map(|_| AtomicU64::new(if length <= size { length } else { 0 })).collect();
            return Ok(Self { file, plan, path, state, probed: false, done, discarded: AtomicBool::default() });
        }
        let known = fs::read(&state).ok().and_then(|text| serde_json::from_slice::<State>(&text).ok());
        let known = known.filter(|State { plan, done }| {
            plan.url == file.url && done.len() == plan.chunks() && resumable(plan, &file) && path.is_file()
        });
        let (plan, done) = if let Some(State { plan, done }) = known {
            (plan, done)
        } else {
            let plan = probe(&file)?;
            let done = vec![0; plan.chunks()];
            (plan, done)
        };
        let done = done.into_iter().map(AtomicU64::new).collect();
        Ok(Self { file, plan, path, state, probed: true, done, discarded: AtomicBool::default() })
    }

    /// Whether bytes that have arrived may be completed by those of a later response.
    pub(crate) fn resumable(&self) -> bool {
        resumable(&self.plan, &self.file)
    }

    /// The chunks that are incomplete.
    pub(crate) fn missing(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.done.len()).filter(|index| {
            let range = self.plan.range(*index);
            self.plan.size.is_none() || self.arrived(*index) < range.end - range.start
        })
    }

    /// Bytes of chunk `index` that have arrived.
    pub(crate) fn arrived(&self, index: usize) -> u64 {
        self.done[index].load(Ordering::Acquire)
    }

    /// Records that `bytes` bytes of chunk `index` have been written.
    pub(crate) fn set_arrived(&self, index: usize, bytes: u64) {
        self.done[index].store(bytes, Ordering::Release);
    }

    /// Bytes of the file that have arrived.
    pub(crate) fn bytes(&self) -> u64 {
        (0..self.done.len()).map(|index| self.arrived(index)).sum()
    }

    /// Saves the state. The bytes reach the disk before the state that counts them.
    pub(crate) fn save(&self) -> io::Result<()> {
        if self.discarded.load(Ordering::Acquire) {
            // Other connections may have written since.
            self.discard();
            return Ok(());
        }
        if !self.probed || !self.path.is_file() {
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

    /// Deletes everything, so that the next run starts over.
    pub(crate) fn discard(&self) {
        self.discarded.store(true, Ordering::Release);
        for path in [&self.path, &self.state] {
            // The file may not exist.
            let _ = fs::remove_file(path);
        }
    }
}
