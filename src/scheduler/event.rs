//! What happens during a run. Independent of how it is shown.

use std::{borrow::Cow, collections::BTreeMap, path::PathBuf};

use imp_stages::contract::event::Progress;
use serde::{Deserialize, Serialize};

use super::MissReason;
use crate::store::{Digest, Hit, RunState, StageState, TreeRef};

/// Something that happened. Stages are identified by name.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum RunEvent<'a> {
    /// The first event.
    Started { pipeline: &'a str, stages: usize },
    /// A stage's artifact is in the cache.
    Hit {
        stage: &'a str,
        #[serde(skip)]
        index: usize,
        #[serde(rename = "made")]
        hit: &'a Hit,
    },
    /// A stage's artifact is taken from the remote cache; `bytes` are missing here.
    Pulling { stage: &'a str, bytes: u64, from: &'a str },
    /// A stage's artifact was taken from the remote cache. Its hit follows.
    Pulled { stage: &'a str, bytes: u64, files: usize, from: &'a str },
    /// All stages have ended, and results are still being sent to the remote cache: how many, and bytes of them.
    Sending { results: usize, done: u64, total: u64, to: &'a str },
    /// What was exchanged with the remote cache in this run.
    Remote(&'a Exchange),
    /// Another run is making this stage's artifact.
    Waiting { stage: &'a str },
    /// A stage's process was started, or is about to be.
    Running { stage: &'a str, kind: &'a str, reason: &'a MissReason, resumed: bool, start: Start },
    /// Where a stage is, if not on this machine: in a queue, or on a node.
    State { stage: &'a str, state: &'a str },
    /// A running stage made progress.
    Progress { stage: &'a str, progress: &'a Progress },
    /// Where a stage runs, in a sentence that names it.
    Note { stage: &'a str, message: &'a str },
    /// Something that the user should know.
    Warning { stage: &'a str, message: &'a str },
    /// A stage ran and succeeded.
    Finished {
        stage: &'a str,
        #[serde(skip)]
        index: usize,
        #[serde(rename = "made")]
        hit: &'a Hit,
    },
    /// A stage had a transient failure; it runs again in `seconds`.
    Retrying { stage: &'a str, message: &'a str, seconds: f64 },
    /// A stage failed. `tail` is the end of its log.
    Failed { stage: &'a str, message: &'a str, help: Option<&'a str>, log: Option<PathBuf>, tail: &'a [String] },
    /// A stage was stopped on request.
    Cancelled { stage: &'a str },
    /// A stage does not run because the stage `because` failed.
    Skipped { stage: &'a str, because: &'a str },
    /// How far the run is: the stages that it is about and those of them that are done, seconds that it will still take if the time
    /// of any stage is known, and stages whose time is not.
    Outlook { done: usize, stages: usize, seconds: Option<f64>, untimed: usize },
    /// The user requested the run to stop.
    Stopping { at_once: bool },
    /// The last event.
    Ended { summary: &'a Summary },
}

/// What a run exchanged with a remote cache.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Exchange {
    /// The address of the remote cache.
    pub(crate) remote: String,
    /// Results that were taken from it, and bytes that were transferred for them.
    pub(crate) pulled: usize,
    pub(crate) pulled_bytes: u64,
    /// Results that were sent to it.
    pub(crate) sent: usize,
    pub(crate) sent_bytes: u64,
    /// Results that are still to be sent: the next run does.
    pub(crate) unsent: usize,
    /// Results in it that could not be used.
    pub(crate) unusable: usize,
}

/// How the process of a stage begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Start {
    /// On this machine, now.
    Here,
    /// It is submitted to a cluster.
    Submitted,
    /// An earlier run has submitted it.
    Found,
}

/// How a run ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) pipeline: String,
    pub(crate) ending: Ending,
    pub(crate) seconds: f64,
    /// The folder with links to the artifacts.
    pub(crate) artifacts: PathBuf,
    /// In the order of execution.
    pub(crate) stages: Vec<StageEnd>,
}

/// The ways in which a run can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ending {
    Done,
    Failed,
    Interrupted,
}

impl From<Ending> for RunState {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => Self::Done,
            Ending::Failed => Self::Failed,
            Ending::Interrupted => Self::Interrupted,
        }
    }
}

/// How a stage ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StageEnd {
    pub(crate) name: String,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) state: StageState,
    /// How long it took when it last ran.
    pub(crate) seconds: Option<f64>,
    /// The peak memory of its process when it last ran, in bytes.
    pub(crate) peak_memory: Option<u64>,
    pub(crate) key: Option<Digest>,
    pub(crate) output: Option<TreeRef>,
    /// The link to its artifact.
    pub(crate) link: Option<PathBuf>,
    pub(crate) results: BTreeMap<String, f64>,
    /// Warnings about its result.
    pub(crate) cautions: Vec<String>,
    /// Its index in the pipeline.
    #[serde(skip)]
    pub(crate) index: usize,
}
