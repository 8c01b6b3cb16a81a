//! Records of runs: what was asked for and what came out, enough to do it again. Knows names and digests; not how a
//! pipeline is read.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

use super::{Digest, Result, Store, StoreError, TreeRef};

/// How a run ended that goes on.
pub(crate) const RUNNING: &str = "running";

/// How a run ended that said no word about it.
pub(crate) const KILLED: &str = "killed";

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) id: String,
    /// What the person calls it. A run with a name is kept.
    pub(crate) name: Option<String>,
    pub(crate) pipeline: String,
    /// The pipeline file, and what the command line changed.
    pub(crate) file: PathBuf,
    pub(crate) overrides: Vec<String>,
    /// Whether it was a sweep.
    pub(crate) sweep: bool,
    /// Seconds since 1970.
    pub(crate) started: f64,
    pub(crate) seconds: f64,
    /// `running`, `done`, `failed` or `interrupted`. Of one that was killed its file says `running`; who reads it says `killed`.
    pub(crate) ending: String,
    pub(crate) host: String,
    /// The version of imp-flow.
    pub(crate) made_by: String,
    /// The pipeline with all that it extends and all that was changed.
    pub(crate) document: String,
    /// The user's own files: by stage, as written there -> absolute path.
    pub(crate) sources: BTreeMap<String, BTreeMap<String, PathBuf>>,
    pub(crate) points: Vec<RunPoint>,
}

/// A point of a sweep, or a whole run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunPoint {
    pub(crate) label: String,
    /// Dotted key -> value.
    pub(crate) values: Vec<(String, String)>,
    pub(crate) stages: Vec<RunStage>,
}

/// A stage of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunStage {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) state: String,
    pub(crate) key: Option<Digest>,
    pub(crate) output: Option<TreeRef>,
    pub(crate) seconds: Option<f64>,
    pub(crate) results: BTreeMap<String, f64>,
}

impl RunRecord {
    /// Whether it goes on.
    pub(crate) fn is_running(&self) -> bool {
        self.ending == RUNNING
    }

    /// The trees that came out.
    pub(crate) fn outputs(&self) -> impl Iterator<Item = Digest> + '_ {
        let stages = self.points.iter().flat_map(|point| &point.stages);
        stages.filter_map(|stage| Some(stage.output?.digest))
    }

    /// The keys of all stages.
    pub(crate) fn keys(&self) -> impl Iterator<Item = Digest> + '_ {
        self.points.iter().flat_map(|point| point.stages.iter().filter_map(|stage| stage.key))
    }
}

impl Store {
    /// Writes a record, over an earlier one of the same run.
    pub(crate) fn write_run(&self, run: &RunRecord) -> Result<()> {
        let path = self.root.join("runs").join(format!("{}.json", run.id));
        let text = serde_json::to_vec_pretty(run)
            .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
        self.write(&path, &text)
    }

    /// All runs whose records can be read, the last one first.
    pub(crate) fn runs(&self) -> Result<Vec<RunRecord>> {
        let folder = self.root.join("runs");
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(StoreError::Io { path: folder, source }),
        };
        let read = |entry: fs::DirEntry| serde_json::from_slice(&fs::read(entry.path()).ok()?).ok();
        let mut runs: Vec<RunRecord> = entries.flatten().filter_map(read).collect();
        for run in runs.iter_mut().filter(|run| run.ending == RUNNING && !self.is_running(&run.id)) {
            run.ending = KILLED.into();
        }
        runs.sort_by(|a, b| b.started.total_cmp(&a.started));
        Ok(runs)
    }

    pub(super) fn remove_run(&self, id: &str) -> Result<()> {
        let path = self.root.join("runs").join(format!("{id}.json"));
        fs::remove_file(&path).map_err(StoreError::io(&path))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}
