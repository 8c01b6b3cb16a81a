//! Answers on disk, in LLaVA's format: the log of a running evaluation, and the file that it leaves.
//! Does not know who answers.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::question::Question;
use crate::StageError;

/// A line of the log.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    question_id: u64,
    text: String,
}

/// The answers so far, in the checkpoint folder: a line an answer, so that nothing is asked twice.
pub(super) struct AnswerLog {
    path: PathBuf,
    file: File,
}

impl AnswerLog {
    /// Opens the log in `folder` and reads what it has, by question id. A line that was cut by a crash is dropped, and
    /// all after it.
    pub(super) fn open(folder: &Path) -> Result<(Self, HashMap<u64, String>), StageError> {
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
        let path = folder.join("answers.jsonl");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(StageError::Io { path, source }),
        };
        let mut answers = HashMap::new();
        let mut whole = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match serde_json::from_slice::<Line>(line) {
                Ok(parsed) if line.ends_with(b"\n") => answers.insert(parsed.question_id, parsed.text),
                _ => break,
            };
            whole += line.len() as u64;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(StageError::io(&path))?;
        file.set_len(whole).map_err(StageError::io(&path))?;
        Ok((Self { path, file }, answers))
    }

    /// Adds answers: they outlive the process from here on.
    pub(super) fn add<'a>(&mut self, answers: impl IntoIterator<Item = (u64, &'a str)>) -> Result<(), StageError> {
        let mut lines = String::new();
        for (question_id, text) in answers {
            lines += &json!({"question_id": question_id, "text": text}).to_string();
            lines.push('\n');
        }
        self.file.write_all(lines.as_bytes()).map_err(StageError::io(&self.path))
    }
}

/// Writes `answers.jsonl` as LLaVA's evaluation scripts do, but with ids that are the same every time.
pub(super) fn write(path: &Path, questions: &[Question], suffix: &str, answers: &[String]) -> Result<(), StageError> {
    let mut lines = String::new();
    for (question, text) in questions.iter().zip(answers) {
        let metadata = match question.category {
            "" => json!({}),
            category => json!({"category": category}),
        };
        let line = json!({
            "question_id": question.id, "prompt": format!("{}{suffix}", question.text), "text": text,
            "answer_id": question.id.to_string(), "model_id": "imp", "metadata": metadata,
        });
        lines += &line.to_string();
        lines.push('\n');
    }
    std::fs::write(path, lines).map_err(StageError::io(path))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_torn_line_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, answers) = AnswerLog::open(folder.path()).unwrap();
        assert!(answers.is_empty());
        log.add([(3, "a \"quoted\"\nanswer"), (1, "")]).unwrap();
        drop(log);
        let path = folder.path().join("answers.jsonl");
        let whole = std::fs::read(&path).unwrap();
        for torn in ["{\"question_id\": 9, \"te", "{\"question_id\": 9, \"text\": \"no newline\"}", "\0\0\0"] {
            std::fs::write(&path, [whole.as_slice(), torn.as_bytes()].concat()).unwrap();
            let (_, answers) = AnswerLog::open(folder.path()).unwrap();
            assert_eq!(answers, HashMap::from([(3, "a \"quoted\"\nanswer".into()), (1, String::new())]));
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }
}
