//! What a benchmark is to the rest of `eval`: questions about images, and a score for their answers.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;

use crate::{Job, StageError};

/// A question about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Unique in the benchmark.
    pub(super) id: u64,
    pub(super) image: PathBuf,
    /// Without the prompt's suffix.
    pub(super) text: String,
    /// The part of the benchmark that it belongs to, or nothing.
    pub(super) category: &'static str,
}

/// A benchmark that has been read.
pub(super) trait Benchmark {
    /// All questions, in the order of the benchmark's files.
    fn questions(&self) -> &[Question];
    /// The score of the answers, one for each question.
    fn score(&self, answers: &[String]) -> Scores;
}

/// What comes out of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Scores {
    /// For reports, the headline first.
    pub(super) figures: Vec<(String, f64)>,
    /// Everything, for `results.json`.
    pub(super) detail: serde_json::Value,
}

/// Finds out before any answer is asked for whether all can be: ids are unique, images are there.
pub(super) fn check(questions: &[Question], job: &Job) -> Result<(), StageError> {
    let mut seen = HashSet::new();
    let mut missing: Vec<&Path> = questions
        .iter()
        .map(|question| question.image.as_path())
        .filter(|image| seen.insert(*image) && !image.is_file())
        .collect();
    missing.sort_unstable();
    let Some(first) = missing.first() else { return Ok(()) };
    let message = match missing.len() {
        1 => "this image of the benchmark is missing".to_string(),
        count => format!("this image of the benchmark is missing, and {} more", count - 1),
    };
    Err(StageError::input(job.named(first), message, "put the images there, or set `image_folder` to where they are"))
}

/// The first entry whose id an earlier one has, with that id.
pub(super) fn duplicate(ids: impl IntoIterator<Item = u64>) -> Option<(usize, u64)> {
    let mut seen = HashSet::new();
    ids.into_iter().enumerate().find(|(_, id)| !seen.insert(*id))
}

/// The error for [`duplicate`].
pub(super) fn twice(named: &Path, id: u64) -> StageError {
    StageError::input(named, format!("the question id {id} is there twice"), "every question needs an id of its own")
}

/// Reads a file of the benchmark, or says what should be there.
pub(super) fn read(path: &Path, key: &str, job: &Job) -> Result<String, StageError> {
    match std::fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map_err(|_| {
            StageError::input(job.named(path), "the file is not UTF-8 text", "give the benchmark's own file")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let help = format!("set `{key}` to the benchmark's own file in the data folder");
            Err(StageError::input(job.named(path), "the file is missing", help))
        }
        Err(source) => Err(StageError::Io { path: path.to_path_buf(), source }),
    }
}

/// Reads a JSON text, with the line of a mistake.
pub(super) fn parse<T: DeserializeOwned>(text: &str, first_line: usize, named: &Path) -> Result<T, StageError> {
    serde_json::from_str(text).map_err(|error| {
        let whole = error.to_string();
        let message = whole.split(" at line ").next().unwrap_or_default().to_string();
        StageError::input(named, message, "give the benchmark's own file, unchanged")
            .at_line(first_line + error.line().max(1) - 1)
    })
}
