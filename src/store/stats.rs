//! The size of the store, in total and by pipeline.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

use super::{
    Store,
    error::{Result, StoreError},
    files::size,
};

/// The contents of a store, counted.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Stats {
    pub(crate) objects: usize,
    pub(crate) bytes: u64,
    pub(crate) receipts: usize,
    pub(crate) runs: usize,
    /// Unfinished stages, and their bytes.
    pub(crate) unfinished: usize,
    pub(crate) unfinished_bytes: u64,
    pub(crate) pipelines: BTreeMap<String, PipelineStats>,
}

/// The results that were made for one pipeline. Other pipelines may use them, too.
#[derive(Debug, Default, Serialize)]
pub(crate) struct PipelineStats {
    pub(crate) stages: usize,
    /// Bytes of distinct files.
    pub(crate) bytes: u64,
    /// When the last of them finished, in seconds since 1970.
    pub(crate) last: u64,
}

impl Store {
    /// Counts the contents of the store.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let mut stats = Stats { runs: self.runs()?.len(), ..Stats::default() };
        for (path, _) in self.named_by_digest("objects", 1)? {
            stats.objects += 1;
            stats.bytes += path.metadata().map_err(StoreError::io(&path))?.len();
        }
        for (path, _) in self.named_by_digest("work", 0)? {
            stats.unfinished += 1;
            stats.unfinished_bytes += size(&path);
        }
        let mut seen = HashSet::new();
        for (_, receipt) in self.receipts() {
            stats.receipts += 1;
            let name = receipt.pipeline.split('/').next().unwrap_or_default().to_string();
            let pipeline = stats.pipelines.entry(name).or_default();
            pipeline.stages += 1;
            pipeline.last = pipeline.last.max(receipt.timing.finished);
            // `verify` reports damaged trees.
            let files = self.tree(receipt.output.digest).unwrap_or_default();
            pipeline.bytes += files.iter().filter(|file| seen.insert(file.digest)).map(|file| file.size).sum::<u64>();
        }
        Ok(stats)
    }
}
