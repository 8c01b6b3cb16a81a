//! What happens during a run, for whoever shows it.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf};

use imp_stages::contract::event::Progress;
use serde::{Deserialize, Serialize};

use super::MissReason;
use crate::store::{Digest, Hit, TreeRef};

/// Something that happened. Stages are named.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum RunEvent<'a> {
    /// First of all.
    Started { pipeline: &'a str, stages: usize },
    /// A stage's artifact is in the cache.
    Hit {
        stage: &'a str,
        #[serde(skip)]
        index: usize,
        made: &'a Hit,
    },
    /// Another run is making this stage's artifact.
    Waiting { stage: &'a str },
    /// A stage's process was started.
    Running { stage: &'a str, kind: &'a str, reason: &'a MissReason, resumed: bool },
    /// A running stage came further.
    Progress { stage: &'a str, progress: &'a Progress },
    /// A person should know this.
    Warning { stage: &'a str, message: &'a str },
    /// A stage ran to its end.
    Finished {
        stage: &'a str,
        #[serde(skip)]
        index: usize,
        made: &'a Hit,
    },
    /// A stage failed in a way that may be over soon; it is tried again in `seconds`.
    Retrying { stage: &'a str, message: &'a str, seconds: f64 },
    /// A stage ended without its output. `tail` is the end of its log.
    Failed { stage: &'a str, message: &'a str, help: Option<&'a str>, log: Option<PathBuf>, tail: &'a [String] },
    /// A stage was stopped.
    Cancelled { stage: &'a str },
    /// A stage can't run because `because` failed.
    Skipped { stage: &'a str, because: &'a str },
    /// The person wants the run to end.
    Stopping { at_once: bool },
    /// Last of all.
    Ended { summary: &'a Summary },
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) pipeline: String,
    pub(crate) ending: Ending,
    pub(crate) seconds: f64,
    /// Where links to the artifacts lie.
    pub(crate) artifacts: PathBuf,
    /// In the order of execution.
    pub(crate) stages: Vec<StageEnd>,
}

/// How a run ended, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Done,
    Failed,
    Interrupted,
}

impl Ending {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How a stage ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StageEnd {
    pub(crate) name: String,
    pub(crate) kind: Cow<'static, str>,
    /// `cached`, `ran`, `failed`, `stopped`, `skipped`, `left out` or `not started`.
    pub(crate) state: Cow<'static, str>,
    /// How long it took when it ran.
    pub(crate) seconds: Option<f64>,
    /// The most memory that its process had when it ran, in bytes.
    pub(crate) peak_memory: Option<u64>,
    pub(crate) key: Option<Digest>,
    pub(crate) output: Option<TreeRef>,
    /// Where people find it.
    pub(crate) link: Option<PathBuf>,
    pub(crate) results: BTreeMap<String, f64>,
    /// Its position in the pipeline.
    #[serde(skip)]
    pub(crate) index: usize,
}
