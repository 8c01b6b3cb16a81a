//! Records of runs: what was requested and what it produced, enough to repeat the run. Independent of how a pipeline is read.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use imp_stages::contract::secret::hide_secrets;
use serde::{Deserialize, Serialize};

use super::{
    Digest, Origin, Result, Store, StoreError, TreeRef, disk,
    files::{entries, open_lock, read},
};

/// The file with the number of the last run.
const LAST: &str = "last";

/// The state of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RunState {
    Running,
    Done,
    Failed,
    Interrupted,
    /// Its process died without recording how. Never written to disk: such a record still says `running`.
    Killed,
}

/// How a stage of a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StageState {
    Cached,
    Ran,
    Failed,
    Stopped,
    /// A stage that it needs failed.
    Skipped,
    /// The user selected other stages.
    #[serde(rename = "left out")]
    LeftOut,
    #[serde(rename = "not started")]
    NotStarted,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Killed => "killed",
        })
    }
}

impl fmt::Display for StageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cached => "cached",
            Self::Ran => "ran",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Skipped => "skipped",
            Self::LeftOut => "left out",
            Self::NotStarted => "not started",
        })
    }
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    pub(crate) id: String,
    /// The name that the user gave it. Garbage collection keeps what a named run uses.
    pub(crate) name: Option<String>,
    pub(crate) pipeline: String,
    /// The pipeline file, and the changes made on the command line.
    pub(crate) file: PathBuf,
    pub(crate) overrides: Vec<String>,
    /// Whether it was a sweep.
    pub(crate) sweep: bool,
    /// Its place in the order of runs: clocks can be wrong. 0 in records of older versions.
    #[serde(default)]
    pub(crate) number: u64,
    /// Seconds since 1970.
    pub(crate) started: f64,
    pub(crate) seconds: f64,
    pub(crate) ending: RunState,
    pub(crate) host: String,
    /// The version of imp-flow.
    pub(crate) made_by: String,
    /// What it was started with. `None` in records of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<Origin>,
    /// The pipeline as TOML, with everything that it extends and all overrides applied.
    pub(crate) document: String,
    /// The user's files by stage: path as written -> absolute path.
    pub(crate) sources: BTreeMap<String, BTreeMap<String, PathBuf>>,
    pub(crate) points: Vec<RunPoint>,
}

/// A point of a sweep; a run that is not a sweep is one point.
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
    pub(crate) state: StageState,
    pub(crate) key: Option<Digest>,
    pub(crate) output: Option<TreeRef>,
    pub(crate) seconds: Option<f64>,
    pub(crate) results: BTreeMap<String, f64>,
    /// When it began and ended in this run, in seconds since the run's start. `None` if it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) began: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) failure: Option<String>,
}

impl RunRecord {
    /// The record as it may be stored and shared.
    pub(crate) fn without_secrets(&self) -> Self {
        let hide = |text: &String| hide_secrets(text).into_owned();
        let mut stored = self.clone();
        stored.document = hide(&self.document);
        stored.overrides = self.overrides.iter().map(hide).collect();
        for (_, value) in stored.points.iter_mut().flat_map(|point| &mut point.values) {
            *value = hide(value);
        }
        let stages = stored.points.iter_mut().flat_map(|point| &mut point.stages);
        for failure in stages.filter_map(|stage| stage.failure.as_mut()) {
            *failure = hide(failure);
        }
        stored
    }

    /// Whether it is still running.
    pub(crate) fn is_running(&self) -> bool {
        self.ending == RunState::Running
    }

    /// The output trees of all stages.
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
    /// Writes a record. Replaces an earlier record of the same run.
    pub(crate) fn write_run(&self, run: &RunRecord) -> Result<()> {
        let path = self.root.join("runs").join(format!("{}.json", run.id));
        let text = serde_json::to_vec_pretty(&run.without_secrets())
            .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
        self.write(&path, &text)
    }

    /// All runs whose records can be read, newest first.
    pub(crate) fn runs(&self) -> Result<Vec<RunRecord>> {
        let read = |path: PathBuf| {
            let run: RunRecord = serde_json::from_slice(&read(&path).ok()?).ok()?;
            // The id becomes a path again, when the record is removed.
            (path.file_stem() == Some(run.id.as_ref())).then_some(run)
        };
        let mut runs: Vec<RunRecord> = entries(&self.root.join("runs"))?.into_iter().filter_map(read).collect();
        for run in runs.iter_mut().filter(|run| run.is_running() && !self.is_running(&run.id)) {
            run.ending = RunState::Killed;
        }
        runs.sort_by(|a, b| b.number.cmp(&a.number).then(b.started.total_cmp(&a.started)));
        Ok(runs)
    }

    /// The last run of the same pipeline before `run` that has results.
    pub(crate) fn run_before(&self, run: &RunRecord) -> Result<Option<RunRecord>> {
        let is_before = |other: &RunRecord| {
            other.pipeline == run.pipeline
                && other.sweep == run.sweep
                && other.id != run.id
                && other.number < run.number
        };
        Ok(self.runs()?.into_iter().find(|other| is_before(other) && other.outputs().next().is_some()))
    }

    /// The number of a new run, higher than that of every run before it.
    pub(crate) fn next_run(&self) -> Result<u64> {
        let lock = self.root.join("locks").join("runs");
        let file = open_lock(&lock)?;
        file.as_ref().map_or(Ok(()), disk::lock).map_err(StoreError::io(&lock))?;
        let path = self.root.join("runs").join(LAST);
        let known = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let last = match known {
            Some(last) => last,
            None => self.runs()?.iter().map(|run| run.number).max().unwrap_or_default(),
        };
        let next = last.saturating_add(1);
        self.write(&path, next.to_string().as_bytes())?;
        Ok(next)
    }

    pub(super) fn remove_run(&self, id: &str) -> Result<()> {
        let path = self.root.join("runs").join(format!("{id}.json"));
        disk::remove_file(&path).map_err(StoreError::io(&path))
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn states_have_the_same_words_in_text_and_json() {
        use StageState::{Cached, Failed, LeftOut, NotStarted, Ran, Skipped, Stopped};
        for state in [Cached, Ran, Failed, Stopped, Skipped, LeftOut, NotStarted] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
        for state in [RunState::Running, RunState::Done, RunState::Failed, RunState::Interrupted, RunState::Killed] {
            assert_eq!(serde_json::to_value(state).unwrap(), state.to_string());
        }
        assert_eq!(format!("{LeftOut:<11}|"), "left out   |");
    }

    #[test]
    fn a_record_can_not_name_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let other = folder.path().join("other.json");
        let record = serde_json::json!({
            "id": "../../other", "name": null, "pipeline": "p", "file": "", "overrides": [], "sweep": false, "started": 1.0,
            "seconds": 0.0, "ending": "done", "host": "", "made_by": "", "document": "", "sources": {}, "points": [],
        });
        fs::create_dir(store.root.join("runs")).unwrap();
        fs::write(store.root.join("runs/forged.json"), record.to_string()).unwrap();
        fs::write(&other, "kept").unwrap();
        store.gc(0, false).unwrap();
        assert!(other.exists() && store.runs().unwrap().is_empty());
    }
}
