//! Collects unusable records, and reports them if there are too many. Independent of why a record is unusable.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{StageError, text::json_records::short};

/// Number of records that an error or a warning names.
const NAMED: usize = 3;

/// An unusable record. The serialised fields are a line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Rejected {
    /// Position in the annotation file, from 1.
    #[serde(skip)]
    pub(super) number: usize,
    /// Line of the annotation file.
    pub(super) line: usize,
    /// The record's `id`, if it can be read.
    pub(super) id: Option<String>,
    /// Part of the artifact: rewording it changes the bytes of `rejected.jsonl`.
    pub(super) reason: String,
    /// A remedy, if a more specific one than the usual is known.
    #[serde(skip)]
    pub(super) help: Option<&'static str>,
}

/// The records rejected so far.
#[derive(Debug, Default)]
pub(super) struct Rejects {
    all: Vec<Rejected>,
}

impl Rejects {
    pub(super) fn add(&mut self, rejected: Rejected) {
        self.all.push(rejected);
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// The first few records, for a message.
    pub(super) fn summary(&self) -> String {
        let one = |rejected: &Rejected| {
            let id = rejected
                .id
                .as_deref()
                .filter(|id| !id.is_empty())
                .map(|id| format!(", id {}", short(id)))
                .unwrap_or_default();
            format!("record {} (line {}{id}): {}", rejected.number, rejected.line, rejected.reason)
        };
        let mut lines: Vec<String> = self.all.iter().take(NAMED).map(one).collect();
        if self.len() > NAMED {
            lines.push(format!("and {} more", self.len() - NAMED));
        }
        lines.join("\n")
    }

    /// The error for too many rejected records in the user's file `annotations`.
    pub(super) fn error(&self, annotations: PathBuf, allowed: usize) -> StageError {
        let what = if self.len() == 1 { "1 record is".into() } else { format!("{} records are", self.len()) };
        let message = format!("{what} unusable, and `max_rejected` allows {allowed}\n{}", self.summary());
        let usual = "correct or remove them, or set `max_rejected` to the number of records that may be left out";
        let help = self.all.first().and_then(|rejected| rejected.help).unwrap_or(usual);
        let line = self.all.first().map_or(1, |rejected| rejected.line);
        StageError::input(annotations, message, help).at_line(line)
    }

    /// Writes `rejected.jsonl`, unless there are no rejected records.
    pub(super) fn write(&self, folder: &Path) -> Result<(), StageError> {
        if self.all.is_empty() {
            return Ok(());
        }
        let path = folder.join("rejected.jsonl");
        let lines: String =
            self.all.iter().map(|rejected| serde_json::to_string(rejected).unwrap_or_default() + "\n").collect();
        std::fs::write(&path, lines).map_err(StageError::io(&path))
    }
}
