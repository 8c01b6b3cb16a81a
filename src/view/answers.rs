//! What models answered: the `answers.jsonl` that a stage may leave in its output. Independent of which kinds of stages do.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
};

use imp_stages::contract::answers::{ANSWERS, AnswerLine};
use serde::Serialize;

use super::RunSource;
use crate::store::{Digest, Receipt, Store, TreeRef};

/// The answers of a stage.
#[derive(Debug, Serialize)]
pub(crate) struct AnswerSet {
    /// The indices of the run, and of the stage in it.
    pub(crate) run: usize,
    pub(crate) stage: usize,
    /// The number of answers. `rows` may have fewer.
    total: usize,
    /// The number of answers with a score, of those of at least [`RIGHT`], and their mean score.
    scored: usize,
    right: usize,
    mean: Option<f64>,
    /// The same for each category: name, answers, right ones, mean score.
    categories: Vec<CategoryView>,
    /// In the order of the file. If there are too many, those whose questions have the smallest digests, so that all models show
    /// the same questions.
    pub(crate) rows: Vec<AnswerRow>,
    /// Input of the stage -> the content of the input.
    #[serde(skip)]
    pub(super) inputs: BTreeMap<String, Digest>,
}

/// The answers of one category.
#[derive(Debug, Serialize)]
struct CategoryView {
    name: String,
    total: usize,
    right: usize,
    mean: Option<f64>,
}

/// An answer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AnswerRow {
    pub(crate) id: String,
    pub(crate) question: String,
    pub(crate) answer: String,
    /// The right answers, the most frequent first. Empty if they are not known.
    pub(crate) truth: Vec<String>,
    /// From 0 to 1.
    pub(crate) score: Option<f64>,
    pub(crate) category: String,
    /// The index of its image in `images`.
    pub(crate) image: Option<usize>,
    /// Its image as `INPUT/PATH`.
    #[serde(skip)]
    pub(crate) image_file: Option<String>,
    /// The digest of the question.
    #[serde(skip)]
    pub(super) order: [u8; 8],
}

/// The score from which an answer counts as right: soft accuracies lie between 0 and 1.
pub(crate) const RIGHT: f64 = 0.5;

/// The longest line in bytes, and the longest text in characters.
const LONGEST_LINE: u64 = 1 << 20;
const LONGEST_TEXT: usize = 1200;
/// Outputs with more files than this have no answers.
const MOST_FILES: u64 = 10_000;

/// A file of answers.
pub(super) struct Found {
    /// The stage's index in the pipeline, and its place in the order of execution.
    index: usize,
    place: usize,
    path: PathBuf,
}

/// The files of answers of a run.
pub(super) fn find(source: &RunSource<'_>) -> Vec<Found> {
    let order = source.graph.order().iter().enumerate();
    let found = order.filter_map(|(place, index)| {
        let output = source.recorded(*index)?.output?;
        Some(Found { index: *index, place, path: file_in(source.store, output)? })
    });
    found.collect()
}

/// The file of answers in an output, if it has one.
fn file_in(store: &Store, output: TreeRef) -> Option<PathBuf> {
    let listing = (output.files <= MOST_FILES).then(|| store.tree(output.digest).ok())??;
    let file = listing.into_iter().find(|file| file.path == ANSWERS)?;
    Some(store.object(file.digest))
}

/// Reads the answers, of which `most` are kept.
pub(super) fn read(source: &RunSource<'_>, found: &Found, run: usize, most: usize) -> Option<AnswerSet> {
    let key = source.recorded(found.index)?.key?;
    let inputs = source.store.receipt(key).ok()??.manifest.inputs;
    let mut set = AnswerSet {
        run,
        stage: found.place,
        total: 0,
        scored: 0,
        right: 0,
        mean: None,
        categories: Vec::new(),
        rows: Vec::new(),
        inputs,
    };
    let mut tallies = BTreeMap::<String, Tally>::new();
    let mut all = Tally::default();
    let mut rows: Vec<(usize, AnswerRow)> = Vec::new();
    let by_order = |(_, row): &(usize, AnswerRow)| row.order;
    each_row(&found.path, |row| {
        all.add(row.score);
        tallies.entry(row.category.clone()).or_default().add(row.score);
        rows.push((all.total, row));
        if rows.len() > 2 * most {
            rows.sort_by_key(by_order);
            rows.truncate(most);
        }
    })
    .ok()?;
    rows.sort_by_key(by_order);
    rows.truncate(most);
    rows.sort_by_key(|(number, _)| *number);
    (set.total, set.scored, set.right, set.mean) = (all.total, all.scored, all.right, all.mean());
    let category = |(name, tally): (String, Tally)| CategoryView {
        name,
        total: tally.total,
        right: tally.right,
        mean: tally.mean(),
    };
    set.categories = tallies.into_iter().map(category).collect();
    set.rows = rows.into_iter().map(|(_, row)| row).collect();
    Some(set)
}

/// All answers of a result, in the order of the file. `None` if it has none.
pub(crate) fn all_rows(store: &Store, receipt: &Receipt) -> io::Result<Option<Vec<AnswerRow>>> {
    let Some(path) = file_in(store, receipt.output) else { return Ok(None) };
    let mut rows = Vec::new();
    each_row(&path, |row| rows.push(row))?;
    Ok(Some(rows))
}

/// Calls `take` with each answer of a file. What is no answer is passed over.
fn each_row(path: &Path, mut take: impl FnMut(AnswerRow)) -> io::Result<()> {
    let (mut reader, mut line) = (BufReader::new(File::open(path)?), Vec::new());
    while (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
        if let Ok(read) = serde_json::from_slice::<AnswerLine>(&line) {
            take(AnswerRow::new(read));
        }
        line.clear();
    }
    Ok(())
}

impl AnswerRow {
    fn new(line: AnswerLine) -> Self {
        let id = line.question_id.as_str().map_or_else(|| line.question_id.to_string(), Into::into);
        let digest = Digest::of(format!("{id}\0{}", line.prompt).as_bytes()).bytes();
        let order = std::array::from_fn(|index| digest[index]);
        let metadata = line.metadata;
        Self {
            id: shortened(id),
            question: shortened(line.prompt),
            answer: shortened(line.text),
            truth: metadata.truth.into_iter().map(shortened).collect(),
            score: metadata.score.filter(|score| score.is_finite()),
            category: shortened(metadata.category),
            image: None,
            image_file: metadata.image,
            order,
        }
    }

    /// Whether it is known to be right, or wrong.
    pub(crate) fn is_right(&self) -> Option<bool> {
        Some(self.score? >= RIGHT)
    }
}

/// A text, or its beginning and its length.
fn shortened(text: String) -> String {
    match text.char_indices().nth(LONGEST_TEXT) {
        Some((end, _)) => format!("{} … ({} characters)", &text[..end], text.chars().count()),
        None => text,
    }
}

#[derive(Debug, Default)]
struct Tally {
    total: usize,
    scored: usize,
    right: usize,
    sum: f64,
}

impl Tally {
    fn add(&mut self, score: Option<f64>) {
        self.total += 1;
        if let Some(score) = score {
            self.scored += 1;
            self.right += usize::from(score >= RIGHT);
            self.sum += score;
        }
    }

    fn mean(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.sum / self.scored as f64)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_of_other_programs_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let lines = [
            r#"{"question_id": 7, "prompt": "?", "text": "yes", "answer_id": "x", "model_id": "llava", "metadata": {}}"#,
            "no JSON",
            r#"{"question_id": "a", "text": "no", "metadata": {"truth": ["yes"], "score": 0.3, "category": "c", "other": 1}}"#,
        ];
        std::fs::write(&path, lines.join("\n")).unwrap();
        let mut rows = Vec::new();
        each_row(&path, |row| rows.push(row)).unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].id.as_str(), rows[0].is_right()), ("7", None));
        assert_eq!((rows[1].id.as_str(), rows[1].is_right(), rows[1].category.as_str()), ("a", Some(false), "c"));
        let long = shortened("ä".repeat(1300));
        assert!(long.ends_with("… (1300 characters)") && long.chars().count() < 1300);
    }
}
