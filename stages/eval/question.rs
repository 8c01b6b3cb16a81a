//! What a benchmark is to the rest of `eval`: questions about images, and a score for their answers.
//! Does not know any benchmark.

use std::{
    collections::HashSet,
    fmt,
    hash::Hash,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Job, StageError};

/// How a benchmark names a question, as LLaVA's files write it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(u64),
    Text(String),
}

impl From<&str> for Id {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Image {
    File(PathBuf),
    /// In the question file itself.
    Embedded(Arc<[u8]>),
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Unique in most benchmarks; else with the first line of the prompt.
    pub(super) id: Id,
    /// Some questions of `ScienceQA` have none.
    pub(super) image: Option<Image>,
    /// All that is asked.
    pub(super) prompt: String,
    /// The part of the benchmark that it belongs to, or nothing.
    pub(super) category: String,
}

impl Question {
    /// One about an image in a file.
    pub(super) fn new(id: Id, image: PathBuf, prompt: String) -> Self {
        Self { id, image: Some(Image::File(image)), prompt, category: String::new() }
    }
}

/// A benchmark that has been read.
pub(super) trait Benchmark {
    /// All questions, in the order of the benchmark's files.
    fn questions(&self) -> &[Question];
    /// The score of the answers, one for each question. No figures if there is nothing to compare them with.
    fn score(&self, answers: &[String], job: &Job) -> Result<Scores, StageError>;
    /// What the benchmark's server or scorer wants to have: names and contents of files.
    fn uploads(&self, _answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        Ok(Vec::new())
    }
}

/// What comes out of an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scores {
    /// For reports, the headline first.
    pub(super) figures: Vec<(String, f64)>,
    /// Everything, for `results.json`.
    pub(super) detail: serde_json::Value,
}

/// Finds out before any answer is asked for whether the images are there.
pub(super) fn check(questions: &[Question], job: &Job) -> Result<(), StageError> {
    let mut seen = HashSet::new();
    let mut missing: Vec<(&Path, &Id)> = questions
        .iter()
        .filter_map(|question| match &question.image {
            Some(Image::File(path)) => Some((path.as_path(), &question.id)),
            Some(Image::Embedded(_)) | None => None,
        })
        .filter(|(image, _)| seen.insert(*image) && !image.is_file())
        .collect();
    missing.sort_unstable_by_key(|(image, _)| *image);
    let Some((first, id)) = missing.first() else { return Ok(()) };
    let others = if missing.len() > 1 { format!(", and {} more", missing.len() - 1) } else { String::new() };
    let message = format!("the image of question {id} is missing{others}");
    let help = "add the download that has the images to `data`, or set `image_folder` to where they are in it";
    Err(StageError::input(job.named(first), message, help))
}

/// The first of `ids` that an earlier one is equal to, and where it stands.
pub(super) fn duplicate<T: Eq + Hash + Clone>(ids: impl IntoIterator<Item = T>) -> Option<(usize, T)> {
    let mut seen = HashSet::new();
    ids.into_iter().enumerate().find(|(_, id)| !seen.insert(id.clone()))
}

/// The error for [`duplicate`].
pub(super) fn twice(named: &Path, id: impl fmt::Display) -> StageError {
    StageError::input(named, format!("the question id {id} is there twice"), "every question needs an id of its own")
}
