//! The records that could not be used, and when there are too many. Does not know why a record is bad.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::StageError;

/// So many are named in an error or a warning.
const NAMED: usize = 3;

/// A line of `rejected.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Rejected {
    /// Line of the annotation file.
    pub(super) line: usize,
    /// `id` of the record, if it can be read.
    pub(super) id: Option<String>,
    pub(super) reason: String,
}

/// What was rejected so far.
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

    /// The first few, for a message.
    pub(super) fn summary(&self) -> String {
        let one = |rejected: &Rejected| {
            let id =
                rejected.id.as_deref().filter(|id| !id.is_empty()).map(|id| format!(" (id {id})")).unwrap_or_default();
            format!("line {}{id}: {}", rejected.line, rejected.reason)
        };
        let mut lines: Vec<String> = self.all.iter().take(NAMED).map(one).collect();
        if self.len() > NAMED {
            lines.push(format!("and {} more", self.len() - NAMED));
        }
        lines.join("\n")
    }

    /// The error for too many, in the person's `annotations`.
    pub(super) fn error(&self, annotations: PathBuf, allowed: usize) -> StageError {
        let what = if self.len() == 1 { "a record".into() } else { format!("{} records", self.len()) };
        let message = format!("{what} can't be used, and `max_rejected` allows {allowed}\n{}", self.summary());
        let help = "mend or remove them, or set `max_rejected` to the number that may be left out";
        let line = self.all.first().map_or(1, |rejected| rejected.line);
        StageError::input(annotations, message, help).at_line(line)
    }

    /// Writes `rejected.jsonl`, if there is anything to write.
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
