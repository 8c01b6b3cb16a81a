//! Throwing away what nothing needs any more. Needed is what the last runs of each pipeline and runs with a name used, what
//! running runs use, and what was made since the oldest of these began: runs that were killed made some of it.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Digest, Receipt, RunRecord, Store,
    error::{Result, StoreError},
    files::{entries, modified, remove_all, size},
};

/// A file in `tmp/` that is older than this belongs to nobody any more.
const TMP_AGE: Duration = Duration::from_hours(1);

/// What went, or would go.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct GcReport {
    pub(crate) runs: usize,
    pub(crate) stages: usize,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Bytes of stages that were begun and never finished.
    pub(crate) unfinished: u64,
    /// Bytes of what is kept.
    pub(crate) kept_bytes: u64,
    /// Stages that went, with their sizes, the largest first.
    pub(crate) largest: Vec<(String, u64)>,
}

impl Store {
    /// Keeps what the last `keep` runs of each pipeline and all runs with a name need; the rest goes.
    pub(crate) fn gc(&self, keep: usize, dry_run: bool) -> Result<GcReport> {
        let _guard = self.guard_alone()?;
        let mut thrown = GcReport::default();
        let remove = |path: &Path| if dry_run { Ok(()) } else { remove_all(path) };

        let (kept, gone) = split(self.runs()?, keep, |id| self.is_running(id));
        thrown.runs = gone.len();
        if !dry_run {
            gone.iter().try_for_each(|run| self.remove_run(&run.id))?;
        }
        let mut roots = self.used_now()?;
        roots.extend(kept.iter().flat_map(RunRecord::keys));
        let since = Since::of(&kept);

        let mut objects = HashSet::new();
        // What kept runs made, though a later run may have made something else under the same key; and what is in use.
        let mut trees: HashSet<Digest> =
            kept.iter().flat_map(RunRecord::outputs).chain(roots.iter().copied()).collect();
        for tree in trees.clone() {
            objects.extend(self.files_of(tree));
        }
        for (key, receipt) in self.receipts() {
            if roots.contains(&key) || since.covers(&receipt) {
                trees.insert(receipt.output.digest);
                objects.extend(self.files_of(receipt.output.digest));
                objects.extend([receipt.log, receipt.metrics, receipt.events].into_iter().flatten());
            } else {
                thrown.stages += 1;
                thrown.largest.push((format!("{}/{}", receipt.pipeline, receipt.stage), receipt.output.bytes));
                remove(&self.receipt_path(key))?;
            }
        }
        thrown.largest.sort_by_key(|(_, bytes)| Reverse(*bytes));

        for (path, digest) in self.named_by_digest("trees", 1)? {
            if !trees.contains(&digest) {
                remove(&path)?;
            }
        }
        for (path, digest) in self.named_by_digest("objects", 1)? {
            let bytes = path.metadata().map_err(StoreError::io(&path))?.len();
            if objects.contains(&digest) {
                thrown.kept_bytes += bytes;
            } else {
                thrown.files += 1;
                thrown.bytes += bytes;
                remove(&path)?;
            }
        }
        for (path, key) in self.named_by_digest("work", 0)? {
            if !roots.contains(&key) && !self.is_being_made(key) && !since.covers_time(modified(&path)) {
                thrown.unfinished += size(&path);
                remove(&path)?;
            }
        }
        for path in entries(&self.root.join("notes"))? {
            remove(&path)?;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        for path in entries(&self.root.join("tmp"))? {
            if now.as_secs() > modified(&path) + TMP_AGE.as_secs() {
                remove(&path)?;
            }
        }
        Ok(thrown)
    }

    /// Everything under `objects/` that a tree needs. Of one whose listing is damaged nothing is of use.
    fn files_of(&self, tree: Digest) -> Vec<Digest> {
        let files = self.tree(tree).unwrap_or_default();
        files.iter().map(|file| file.digest).chain([tree]).collect()
    }

    /// What lies in `folder` under names that are digests, `levels` of them in folders of two digits.
    pub(super) fn named_by_digest(&self, folder: &str, levels: usize) -> Result<Vec<(PathBuf, Digest)>> {
        let top = entries(&self.root.join(folder))?;
        let named = |path: PathBuf, start: &str| {
            let digest = Digest::from_hex(&format!("{start}{}", path.file_name()?.to_str()?))?;
            Some((path, digest))
        };
        if levels == 0 {
            return Ok(top.into_iter().filter_map(|path| named(path, "")).collect());
        }
        let mut found = Vec::new();
        for path in top {
            let start = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            found.extend(entries(&path)?.into_iter().filter_map(|path| named(path, &start)));
        }
        Ok(found)
    }
}

/// The runs that are kept, and the others. `runs` begins with the last one.
fn split(runs: Vec<RunRecord>, keep: usize, is_running: impl Fn(&str) -> bool) -> (Vec<RunRecord>, Vec<RunRecord>) {
    let mut seen = BTreeMap::<String, usize>::new();
    runs.into_iter().partition(|run| {
        let count = seen.entry(run.pipeline.clone()).or_default();
        *count += 1;
        run.name.is_some() || *count <= keep || is_running(&run.id)
    })
}

/// When the oldest kept run of each pipeline began.
struct Since(BTreeMap<String, u64>);

impl Since {
    fn of(kept: &[RunRecord]) -> Self {
        let mut since = BTreeMap::new();
        // A name keeps one run, and not all that came after it.
        for run in kept.iter().filter(|run| run.name.is_none()) {
            let oldest = since.entry(run.pipeline.clone()).or_insert(u64::MAX);
            *oldest = (run.started as u64).min(*oldest);
        }
        Self(since)
    }

    fn covers(&self, receipt: &Receipt) -> bool {
        let pipeline = receipt.pipeline.split('/').next().unwrap_or_default();
        self.0.get(pipeline).is_some_and(|since| receipt.timing.finished >= *since)
    }

    fn covers_time(&self, time: u64) -> bool {
        self.0.values().min().is_some_and(|since| time >= *since)
    }
}
