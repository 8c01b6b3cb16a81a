//! What is in a remote cache, counted, and everything in it that is not here.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Mutex, PoisonError},
};

use serde::Serialize;

use super::{
    Remote, Trouble, names, parallel,
    place::{Small, read_small},
};
use crate::store::{Digest, LARGEST_RECEIPT, Receipt};

/// The contents of a remote cache, counted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RemoteStats {
    pub(crate) remote: String,
    pub(crate) results: usize,
    /// Results whose receipts can't be read.
    pub(crate) damaged: usize,
    pub(crate) objects: usize,
    pub(crate) bytes: u64,
    /// Records of what runs used.
    pub(crate) runs: usize,
    pub(crate) pipelines: BTreeMap<String, RemotePipeline>,
}

/// The results that were made for one pipeline.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RemotePipeline {
    pub(crate) stages: usize,
    /// Bytes of all results; several may share files.
    pub(crate) bytes: u64,
    /// When the last of them was made, in seconds since 1970.
    pub(crate) last: u64,
}

impl Remote {
    /// Counts what is there.
    pub(crate) fn stats(&self) -> Result<RemoteStats, Trouble> {
        let place = self.place()?;
        let mut stats = RemoteStats { remote: self.address(), ..RemoteStats::default() };
        place.list(names::OBJECTS, &mut |listed| {
            stats.objects += 1;
            stats.bytes += listed.size;
        })?;
        place.list(names::RUNS, &mut |_| stats.runs += 1)?;
        let keys = self.keys()?;
        let stats = Mutex::new(stats);
        parallel::for_each(&keys, |key| {
            let read = read_small(&*place, &names::receipt(*key), LARGEST_RECEIPT)?;
            let mut stats = stats.lock().unwrap_or_else(PoisonError::into_inner);
            stats.results += 1;
            let receipt = match read {
                Some(Small::Whole(bytes)) => Receipt::of_others(&bytes),
                _ => None,
            };
            let Some(receipt) = receipt else {
                stats.damaged += 1;
                return Ok(());
            };
            let name = receipt.pipeline.split('/').next().unwrap_or_default().to_string();
            let pipeline = stats.pipelines.entry(name).or_default();
            pipeline.stages += 1;
            pipeline.bytes = pipeline.bytes.saturating_add(receipt.output.bytes);
            pipeline.last = pipeline.last.max(receipt.timing.finished);
            Ok::<(), Trouble>(())
        })?;
        Ok(stats.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// The keys of all results.
    pub(crate) fn keys(&self) -> Result<Vec<Digest>, Trouble> {
        let mut keys = HashSet::new();
        self.place()?.list(names::RECEIPTS, &mut |listed| keys.extend(names::digest(&listed.name, names::RECEIPTS)))?;
        let mut keys: Vec<Digest> = keys.into_iter().collect();
        keys.sort_unstable();
        Ok(keys)
    }
}
