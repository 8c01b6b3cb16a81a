//! The interface of a benchmark to the rest of `eval`: questions about images, and a score for the answers.
//! Independent of any particular benchmark.

use std::{
    collections::HashSet,
    fmt,
    hash::{Hash, Hasher},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

use crate::{
    Job, StageError,
    text::{json_records::short, tokenizer::IMAGE_TEXT},
};

/// The id of a question, as in LLaVA's files.
///
/// Some programs write numbers as strings, so `"7"` and `7` are the same question.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(super) enum Id {
    Number(u64),
    Text(String),
}

impl PartialEq for Id {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Number(one), Self::Number(other)) => one == other,
            (Self::Text(one), Self::Text(other)) => one == other,
            (Self::Number(number), Self::Text(text)) | (Self::Text(text), Self::Number(number)) => {
                *text == number.to_string()
            }
        }
    }
}

impl Eq for Id {}

impl Hash for Id {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.to_string().hash(state);
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Number(number) if number.is_u64() => Ok(Self::Number(number.as_u64().unwrap_or_default())),
            _ => Err(D::Error::custom("a question id must be an integer or a string")),
        }
    }
}

/// Reads a whole number, which some programs write as a string.
pub(super) fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok());
    number
        .ok_or_else(|| D::Error::custom(format!("there is {} where a whole number must be", short(&value.to_string()))))
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

/// The source of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Image {
    File(PathBuf),
    /// The bytes of an image file that is part of the question file.
    Embedded(Arc<[u8]>),
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Unique in most benchmarks; otherwise unique together with the first line of the prompt.
    pub(super) id: Id,
    /// `None` for some questions of `ScienceQA`.
    pub(super) image: Option<Image>,
    /// The complete question for the model.
    pub(super) prompt: String,
    /// The question's category in the benchmark; may be empty.
    pub(super) category: String,
}

impl Question {
    /// A question about an image file.
    pub(super) fn new(id: Id, image: PathBuf, prompt: String) -> Self {
        Self { id, image: Some(Image::File(image)), prompt, category: String::new() }
    }
}

/// What the benchmark says of one answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Mark {
    /// The right answers, the most frequent first. Empty if they are not known.
    pub(super) truth: Vec<String>,
    /// From 0 to 1, as the benchmark's scorer rates this answer alone; `None` if it can't.
    pub(super) score: Option<f64>,
}

impl Mark {
    pub(super) fn new(truth: impl Into<String>, score: f64) -> Self {
        Self { truth: vec![truth.into()], score: Some(score) }
    }

    /// A mark with the different answers among those `given` by annotators.
    pub(super) fn of_given<'a>(given: impl Iterator<Item = &'a str>, score: f64) -> Self {
        let mut counts: Vec<(&str, usize)> = Vec::new();
        for answer in given {
            match counts.iter_mut().find(|(known, _)| *known == answer) {
                Some((_, count)) => *count += 1,
                None => counts.push((answer, 1)),
            }
        }
        // Stable: answers that are equally frequent stay in their order.
        counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        Self { truth: counts.into_iter().map(|(answer, _)| answer.into()).collect(), score: Some(score) }
    }
}

/// A benchmark that has been read.
pub(super) trait Benchmark {
    /// All questions, in the order of the benchmark's files.
    fn questions(&self) -> &[Question];
    /// Scores the answers, one per question. Returns no figures if the right answers are not known.
    fn score(&self, answers: &[String], job: &Job) -> Result<Scores, StageError>;
    /// What is known of one answer, for people who look at it: the figures come from [`Benchmark::score`].
    fn mark(&self, question: usize, answer: &str) -> Mark;
    /// The files for the benchmark's server or scorer: names and contents.
    fn uploads(&self, _answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        Ok(Vec::new())
    }
}

/// The result of an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scores {
    /// Figures for reports, the headline first.
    pub(super) figures: Vec<(String, f64)>,
    /// All details, for `results.json`.
    pub(super) detail: serde_json::Value,
}

/// Checks, before any question is asked, that all images exist.
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
    let help = match folder_with(first, job) {
        Some(folder) => format!("it is in the folder `{folder}` of the data: set `image_folder = \"{folder}\"`"),
        None => "add the download with the images to `data`, or set `image_folder` to their folder in it".into(),
    };
    Err(StageError::input(job.named(first), message, help))
}

/// The folder at the top of the data that has a file of this name.
fn folder_with(image: &Path, job: &Job) -> Option<String> {
    let name = image.file_name()?;
    let entries = job.inputs("data").filter_map(|data| std::fs::read_dir(data).ok()).flatten().flatten();
    let mut folders: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|folder| folder.join(name).is_file()).collect();
    folders.sort_unstable();
    Some(folders.first()?.file_name()?.to_string_lossy().into_owned())
}

/// Warns of questions with the mark of an image, which is kept as text: the image itself comes first in any case.
pub(super) fn remark(questions: &[Question], job: &Job) {
    let marked: Vec<&Question> = questions.iter().filter(|question| question.prompt.contains(IMAGE_TEXT)).collect();
    if let Some(first) = marked.first() {
        job.caution(format!(
            "{} question(s) contain `{IMAGE_TEXT}`, such as {}: it is asked as text, and the image comes before the question. \
             Remove it if it stands for the image",
            marked.len(),
            first.id
        ));
    }
}

/// The first id that repeats an earlier one, and its index.
pub(super) fn duplicate<T: Eq + Hash + Clone>(ids: impl IntoIterator<Item = T>) -> Option<(usize, T)> {
    let mut seen = HashSet::new();
    ids.into_iter().enumerate().find(|(_, id)| !seen.insert(id.clone()))
}

/// The error for a repeated id.
pub(super) fn duplicate_id(named: &Path, id: impl fmt::Display) -> StageError {
    StageError::input(named, format!("the question id {id} occurs twice"), "give every question its own id")
}
