//! Garbage collection. Keeps the results that the last runs of each pipeline, named runs and current runs use. Also keeps results
//! that are newer than the oldest kept run of their pipeline: a run that was killed may have made them.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Digest, Receipt, RunRecord, Store,
    checked::{FILES, FOLDERS, INTACT},
    error::{Result, StoreError},
    files::{entries, modified, remove_all, size},
    mend::SET_ASIDE,
    work::idle_arrays,
};

/// Files in `tmp/` that are older than this were left by killed processes.
const TMP_AGE: Duration = Duration::from_hours(1);

/// What was deleted, or would be.
#[derive(Debug, Default, Clone, PartialEq, Eq, serde::Serialize)]
pub(crate) struct GcReport {
    pub(crate) runs: usize,
    pub(crate) stages: usize,
    pub(crate) files: usize,
    pub(crate) bytes: u64,
    /// Bytes of unfinished stages.
    pub(crate) unfinished: u64,
    /// Bytes that are kept.
    pub(crate) kept_bytes: u64,
    /// Deleted results with their sizes, the largest first.
    pub(crate) largest: Vec<(String, u64)>,
}

impl Store {
    /// Deletes everything that the last `keep` runs of each pipeline, named runs and current runs do not use.
    pub(crate) fn gc(&self, keep: usize, dry_run: bool) -> Result<GcReport> {
        let _guard = self.guard_alone()?;
        let mut report = GcReport::default();
        let remove = |path: &Path| if dry_run { Ok(()) } else { remove_all(path) };

        let (kept, gone) = split(self.runs()?, keep, |id| self.is_running(id));
        report.runs = gone.len();
        if !dry_run {
            gone.iter().try_for_each(|run| self.remove_run(&run.id))?;
        }
        let mut roots = self.used_now()?;
        roots.extend(kept.iter().flat_map(RunRecord::keys));
        roots.extend(self.used_elsewhere()?);
        let since = Since::of(&kept);

        let mut objects = HashSet::new();
        // Outputs of kept runs, even if a later run produced different content under the same key, and trees in use.
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
                report.stages += 1;
                report.largest.push((format!("{}/{}", receipt.pipeline, receipt.stage), receipt.output.bytes));
                remove(&self.receipt_path(key))?;
            }
        }
        report.largest.sort_by_key(|(_, bytes)| Reverse(*bytes));

        for (path, _) in self.named_by_digest("trees", 1)?.iter().filter(|(_, digest)| !trees.contains(digest)) {
            remove(path)?;
        }
        for (path, digest) in self.named_by_digest("objects", 1)? {
            let bytes = path.metadata().map_err(StoreError::io(&path))?.len();
            if objects.contains(&digest) {
                report.kept_bytes += bytes;
            } else {
                report.files += 1;
                report.bytes += bytes;
                remove(&path)?;
            }
        }
        for (path, key) in self.named_by_digest("work", 0)? {
            if !roots.contains(&key) && !self.is_being_made(key) && !since.covers_time(modified(&path)) {
                report.unfinished += size(&path);
                remove(&path)?;
            }
        }
        for kind in [FOLDERS, FILES, INTACT] {
            for (path, _) in self.named_by_digest(kind, 1)?.iter().filter(|(_, digest)| !trees.contains(digest)) {
                remove(path)?;
            }
        }
        self.remove_free_locks(dry_run)?;
        self.disposable()?.iter().try_for_each(|path| remove(path))?;
        Ok(report)
    }

    /// The keys and trees of stages that other machines may be running, although no run follows them.
    fn used_elsewhere(&self) -> Result<Vec<Digest>> {
        let works = self.named_by_digest("work", 0)?.into_iter().map(|(_, key)| (key, self.work(key)));
        Ok(works
            .filter(|(_, work)| work.may_be_running())
            .flat_map(|(key, work)| [work.trees(), vec![key]].concat())
            .collect())
    }

    /// Notes, which the next run writes again, what was set aside because it was damaged, the folders of arrays of jobs that have ended,
    /// and files in `tmp/` that killed processes have left.
    fn disposable(&self) -> Result<Vec<PathBuf>> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let is_old = |path: &PathBuf| now.as_secs() > modified(path) + TMP_AGE.as_secs();
        let mut paths = entries(&self.root.join("notes"))?;
        paths.extend(entries(&self.root.join("tmp"))?.into_iter().filter(is_old));
        paths.extend(idle_arrays(&self.root.join("work")));
        let folders = ["locks", "live", "work", "runs"].map(|name| self.root.join(name));
        for folder in entries(&self.root.join("trees"))?.into_iter().chain(folders) {
            let is_set_aside = |path: &PathBuf| path.extension().is_some_and(|ending| ending == SET_ASIDE);
            // A file in place of a folder has no entries.
            paths.extend(entries(&folder).unwrap_or_default().into_iter().filter(is_set_aside));
        }
        Ok(paths)
    }

    /// The objects of a tree. Only the listing itself if it is damaged, since the other objects are useless then.
    fn files_of(&self, tree: Digest) -> Vec<Digest> {
        let files = self.tree(tree).unwrap_or_default();
        files.iter().map(|file| file.digest).chain([tree]).collect()
    }

    /// The entries of `folder` whose names are digests. If `levels` is 1, the first two digits are the name of a subfolder.
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

/// Splits `runs`, newest first, into kept runs and runs to delete.
fn split(runs: Vec<RunRecord>, keep: usize, is_running: impl Fn(&str) -> bool) -> (Vec<RunRecord>, Vec<RunRecord>) {
    // Sweeps are counted by themselves, as they are recorded: a run that finds everything as its last record says leaves none.
    let mut seen = BTreeMap::<(String, bool), usize>::new();
    runs.into_iter().partition(|run| {
        let count = seen.entry((run.pipeline.clone(), run.sweep)).or_default();
        *count += 1;
        run.name.is_some() || *count <= keep || is_running(&run.id)
    })
}

/// When the oldest kept run of each pipeline started.
struct Since(BTreeMap<String, u64>);

impl Since {
    fn of(kept: &[RunRecord]) -> Self {
        let mut since = BTreeMap::new();
        // A named run keeps only its own results, not everything since then.
        for run in kept.iter().filter(|run| run.name.is_none()) {
            let oldest = since.entry(run.pipeline.clone()).or_insert(u64::MAX);
            *oldest = (run.started as u64).min(*oldest);
        }
        Self(since)
    }

    /// Whether a result is newer than the oldest kept run of its pipeline.
    fn covers(&self, receipt: &Receipt) -> bool {
        let pipeline = receipt.pipeline.split('/').next().unwrap_or_default();
        self.0.get(pipeline).is_some_and(|since| receipt.timing.finished >= *since)
    }

    /// Whether `time` is later than the start of the oldest kept run.
    fn covers_time(&self, time: u64) -> bool {
        self.0.values().min().is_some_and(|since| time >= *since)
    }
}
