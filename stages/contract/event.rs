//! What a running stage says: one JSON line an event, from the child process to the runner.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Something that a running stage says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The stage's process has started: the first event.
    Started {
        /// The name of the machine that it runs on.
        host: String,
    },
    /// How far the work is.
    Progress(Progress),
    /// A final figure of the stage, kept with its receipt (`accuracy`, `loss`).
    Result {
        /// Its name.
        name: String,
        /// Its value.
        value: f64,
    },
    /// The most memory that its process had at any time.
    PeakMemory {
        /// Resident bytes, pages of mapped files included.
        bytes: u64,
    },
    /// Something that a person should know although the stage goes on.
    Warning {
        /// The text.
        message: String,
    },
    /// The stage ended without its output.
    Failed {
        /// What happened, with file and line where there is one.
        message: String,
        /// What the person can do.
        help: Option<String>,
        /// Whether it may be over in a while.
        #[serde(default)]
        transient: bool,
    },
    /// The stage stopped on request, after saving a checkpoint if it has any.
    Cancelled,
    /// The output folder is complete.
    Done,
}

/// How far the work of a stage is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done, those before a resumption included.
    pub done: u64,
    /// Units in all; 0 when not known.
    pub total: u64,
    /// What is counted, in the plural: `steps`, `images`, `questions`, `bytes`.
    pub unit: String,
    /// Current figures worth showing, such as `loss`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
}

impl Progress {
    /// `done` of `total` `unit`.
    pub fn new(done: usize, total: usize, unit: &str) -> Self {
        Self { done: done as u64, total: total as u64, unit: unit.into(), values: BTreeMap::new() }
    }

    /// Adds a figure to show.
    #[must_use]
    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.values.insert(name.into(), value);
        self
    }
}
