//! What a running stage reports: one JSON line per event, from the child process to the runner.
//! Independent of how events travel and how they are shown.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{bytes::ByteSize, device::Environment};

/// A report of a running stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The stage's process has started: the first event.
    Started {
        /// The name of the machine that it runs on.
        host: String,
    },
    /// How far the work has come.
    Progress(Progress),
    /// A final figure of the stage, kept with its receipt (`accuracy`, `loss`).
    Result {
        /// Its name.
        name: String,
        /// Its value.
        value: f64,
    },
    /// What it computes on.
    Environment(Environment),
    /// The peak memory of its process.
    PeakMemory {
        /// Resident bytes, including pages of mapped files.
        bytes: u64,
    },
    /// Something that the user should know, although the stage continues.
    Warning {
        /// The text.
        message: String,
    },
    /// A warning about the result itself, such as records without labels. It is kept with the receipt, and shown again whenever
    /// the result is used.
    Caution {
        /// The text.
        message: String,
    },
    /// The output may lack something, and no one could say: it is used in this run, but never taken for the result.
    Unchecked {
        /// What could not be checked.
        message: String,
    },
    /// The stage ended without its output.
    Failed {
        /// What happened, with file and line where there is one.
        message: String,
        /// What the user can do.
        help: Option<String>,
        /// Whether the failure may be temporary.
        #[serde(default)]
        transient: bool,
    },
    /// The stage stopped on request, after saving a checkpoint if it has one.
    Cancelled,
    /// The output folder is complete.
    Done,
}

/// The unit of progress in bytes, which are shown as sizes.
pub const BYTES: &str = "bytes";

/// How far the work of a stage has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Units done, including those before a resume.
    pub done: u64,
    /// Units in total; 0 if unknown.
    pub total: u64,
    /// The unit, in the plural: `steps`, `images`, `questions`, or [`BYTES`].
    pub unit: String,
    /// Current figures worth showing, such as `loss`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub values: BTreeMap<String, f64>,
}

impl fmt::Display for Progress {
    /// `120/400 steps, loss 1.234` or `1.2 GB/4.5 GB`, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |count: u64| if self.unit == BYTES { ByteSize(count).to_string() } else { count.to_string() };
        write!(f, "{}", amount(self.done))?;
        if self.total > 0 {
            write!(f, "/{}", amount(self.total))?;
        }
        if self.unit != BYTES {
            write!(f, " {}", self.unit)?;
        }
        self.values.iter().try_for_each(|(name, value)| write!(f, ", {name} {}", figure(*value)))
    }
}

/// A number with four significant digits, without trailing zeros.
pub fn figure(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let decimals = (3 - value.abs().log10().floor() as i32).clamp(0, 8) as usize;
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use crate::testing::Trial;

    /// JSON has no such number: the runner would drop the line.
    #[test]
    fn a_figure_that_is_not_finite_is_told_and_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let job = Trial::new(folder.path(), &[]).job_telling(move |event| seen.lock().unwrap().push(event));
        for value in [f64::NAN, f64::INFINITY, 2.5] {
            job.result("loss", value);
        }
        let lines: Vec<String> =
            events.lock().unwrap().iter().map(|event| serde_json::to_string(event).unwrap()).collect();
        assert!(lines[0].contains("`loss` is NaN") && lines[1].contains("`loss` is inf"), "{lines:?}");
        assert!(lines.len() == 3 && lines[2].contains("2.5"), "{lines:?}");
    }
}
