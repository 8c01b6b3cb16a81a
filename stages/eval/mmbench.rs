//! `MMBench` (Liu et al. 2023, arXiv 2307.06281): multiple choice. Each question occurs once per option, with the options
//! rotated; circular evaluation counts it as right only if all rotations are. Scored like `VLMEvalKit` without a model that
//! interprets answers, which is the first step of the benchmark's server. Independent of other benchmarks.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use super::{
    EvalConfig,
    choice::chosen,
    files::{Files, Text},
    means::{Means, one_if, percent},
    question::{Benchmark, Id, Image, Mark, Question, Scores, duplicate, duplicate_id},
    spreadsheet,
};
use crate::{Job, StageError};

/// Rotations of a question have its index plus a multiple of this number.
const ROTATION: u64 = 1_000_000;
/// The texts that pandas, which LLaVA and `VLMEvalKit` use to read the file, treats as a missing value.
const NO_VALUE: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];
/// The columns that are not submitted.
const NOT_SUBMITTED: [&str; 6] = ["hint", "category", "source", "image", "comment", "l2-category"];

/// A row of the file.
struct Row {
    index: u64,
    options: Vec<(char, String)>,
    /// `None` in the test set.
    answer: Option<char>,
    /// The abilities that the question tests: coarse, then fine.
    abilities: [String; 2],
    /// The cells of the submitted columns.
    submitted: Vec<String>,
}

/// The questions, one per row.
pub(super) struct MmBench {
    questions: Vec<Question>,
    rows: Vec<Row>,
    /// The names of the submitted columns.
    columns: Vec<String>,
}

impl MmBench {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        Self::parse(&files.questions(&["mmbench_dev_20230712.tsv"])?, files.config)
    }

    fn parse(text: &Text, config: &EvalConfig) -> Result<Self, StageError> {
        let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_reader(text.text.as_bytes());
        let broken = |error: &csv::Error| {
            let line = error.position().map_or(1, csv::Position::line);
            text.error("not a valid row of tab-separated values").at_line(line as usize)
        };
        let columns: Vec<String> = reader.headers().map_err(|error| broken(&error))?.iter().map(Into::into).collect();
        for needed in ["index", "question", "A", "B", "image"] {
            if !columns.iter().any(|column| column == needed) {
                return Err(text.error(format!("the column `{needed}` is missing")).at_line(1));
            }
        }
        let records: Vec<csv::StringRecord> =
            reader.records().collect::<Result<_, _>>().map_err(|error| broken(&error))?;
        let mut table =
            Table { columns: &columns, text, images: HashMap::new(), by_index: by_index(&columns, &records) };
        let mut all = Self { questions: Vec::new(), rows: Vec::new(), columns: Vec::new() };
        // The limit is one of questions, each with all of its rotations.
        let place = columns.iter().position(|column| column == "index");
        let base = |record: &csv::StringRecord| Some(record.get(place?)?.trim().parse::<u64>().ok()? % ROTATION);
        let mut asked = HashSet::new();
        for record in &records {
            let base = base(record);
            if config.limit > 0 && asked.len() == config.limit && !asked.contains(&base) {
                continue;
            }
            asked.insert(base);
            let (row, question) = table.row(record, config)?;
            all.rows.push(row);
            all.questions.push(question);
        }
        if let Some((_, index)) = duplicate(all.rows.iter().map(|row| row.index)) {
            return Err(duplicate_id(&text.named, index));
        }
        if all.rows.is_empty() {
            return Err(text.error("there are no questions"));
        }
        all.columns = columns.into_iter().filter(|column| !NOT_SUBMITTED.contains(&column.as_str())).collect();
        Ok(all)
    }
}

/// Shorter cells in the image's column are the index of the row with the image, as in `VLMEvalKit`'s files.
const LONGEST_INDEX: usize = 64;

/// The images that stand in the file, by the index of their row.
fn by_index<'a>(columns: &[String], records: &'a [csv::StringRecord]) -> HashMap<&'a str, &'a str> {
    let place = |name: &str| columns.iter().position(|column| column == name);
    let (Some(index), Some(image)) = (place("index"), place("image")) else { return HashMap::new() };
    let cells = records.iter().filter_map(|record| Some((record.get(index)?, record.get(image)?)));
    cells.filter(|(_, image)| image.len() > LONGEST_INDEX).collect()
}

/// The state of reading the table.
struct Table<'a> {
    columns: &'a [String],
    text: &'a Text,
    /// By their base64 text, which rotations share.
    images: HashMap<String, Arc<[u8]>>,
    /// The images' base64 texts by the index of their row.
    by_index: HashMap<&'a str, &'a str>,
}

impl Table<'_> {
    fn row(&mut self, record: &csv::StringRecord, config: &EvalConfig) -> Result<(Row, Question), StageError> {
        let line = record.position().map_or(1, csv::Position::line) as usize;
        let cells: HashMap<&str, &str> =
            self.columns.iter().map(String::as_str).zip(record).filter(|(_, cell)| !NO_VALUE.contains(cell)).collect();
        let cell = |column: &str| cells.get(column).map(ToString::to_string);
        let index = cell("index").and_then(|index| index.parse().ok());
        let index: u64 = index.ok_or_else(|| self.text.error("the index is not a number").at_line(line))?;
        let wrong = |what: &str| self.text.error(format!("question {index}: {what}")).at_line(line);
        let options: Vec<(char, String)> =
            ('A'..='Z').filter_map(|letter| Some((letter, cell(&letter.to_string())?))).collect();
        let answer = cell("answer").and_then(|answer| answer.chars().next());
        if options.is_empty() || answer.is_some_and(|answer| !options.iter().any(|(letter, _)| *letter == answer)) {
            return Err(wrong("its answer is not one of its options"));
        }
        let mut lines: Vec<String> = cell("hint").filter(|hint| !is_none(hint)).into_iter().collect();
        lines.push(cell("question").ok_or_else(|| wrong("there is no question"))?);
        // LLaVA shows at most four options.
        let shown = options.iter().take(4).take_while(|(_, option)| !is_none(option));
        lines.extend(shown.map(|(letter, option)| format!("{letter}. {option}")));
        let coded = cells.get("image").copied().ok_or_else(|| wrong("it has no image"))?;
        let coded = match self.by_index.get(coded) {
            Some(of_other) => of_other,
            None if coded.len() <= LONGEST_INDEX && coded.parse::<u64>().is_ok() => {
                return Err(wrong(&format!("its image is that of row {coded}, which has none")));
            }
            None => coded,
        };
        if !self.images.contains_key(coded) {
            let bytes = STANDARD.decode(coded).map_err(|_| wrong("its image is not base64"))?;
            self.images.insert(coded.into(), bytes.into());
        }
        let submitted = self.columns.iter().zip(record).filter(|(column, _)| !NOT_SUBMITTED.contains(&column.as_str()));
        let question = Question {
            id: Id::Number(index),
            image: self.images.get(coded).cloned().map(Image::Embedded),
            prompt: config.prompt(&lines.join("\n")),
            category: cell("category").unwrap_or_default(),
        };
        let abilities = ["l2-category", "category"].map(|column| cell(column).unwrap_or_default());
        let submitted = submitted.map(|(_, cell)| cell.to_string()).collect();
        Ok((Row { index, options, answer, abilities, submitted }, question))
    }
}

/// LLaVA's own test for missing values.
fn is_none(text: &str) -> bool {
    ["nan", "none"].contains(&text.to_lowercase().as_str())
}

/// The accuracies of one way of scoring: overall, and by ability.
#[derive(Default)]
struct Accuracies {
    all: Vec<f64>,
    by_ability: [Means; 2],
}

impl Accuracies {
    fn add(&mut self, row: &Row, right: bool) {
        self.all.push(one_if(right));
        for (parts, ability) in self.by_ability.iter_mut().zip(&row.abilities) {
            parts.add(ability, one_if(right));
        }
    }

    fn json(&self) -> Value {
        let [coarse, fine] = self.by_ability.each_ref().map(Means::json);
        json!({"overall": percent(&self.all), "questions": self.all.len(), "l2-category": coarse, "category": fine})
    }
}

impl Benchmark for MmBench {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let row = &self.rows[question];
        let Some(right) = row.answer else { return Mark::default() };
        let option = row.options.iter().find(|(letter, _)| *letter == right).map_or("", |(_, text)| text);
        Mark::new(format!("{right}. {option}"), one_if(chosen(answer, &row.options) == Some(right)))
    }

    fn score(&self, answers: &[String], job: &Job) -> Result<Scores, StageError> {
        if self.rows.iter().any(|row| row.answer.is_none()) {
            return Ok(Scores::default());
        }
        let right: HashMap<u64, bool> = self
            .rows
            .iter()
            .zip(answers)
            .map(|(row, answer)| (row.index, chosen(answer, &row.options) == row.answer))
            .collect();
        let mut all_rotations: HashMap<u64, bool> = HashMap::new();
        for row in &self.rows {
            *all_rotations.entry(row.index % ROTATION).or_insert(true) &= right[&row.index];
        }
        let (mut circular, mut vanilla) = (Accuracies::default(), Accuracies::default());
        for row in self.rows.iter().filter(|row| row.index < ROTATION) {
            circular.add(row, all_rotations[&row.index]);
            vanilla.add(row, right[&row.index]);
        }
        let vanilla_figure = ("vanilla".into(), percent(&vanilla.all));
        if self.rows.iter().all(|row| row.index < ROTATION) {
            job.caution("the questions have no rotations of their options, so there is no circular score");
            return Ok(Scores { figures: vec![vanilla_figure], detail: json!({"vanilla": vanilla.json()}) });
        }
        let figures = vec![("circular".into(), percent(&circular.all)), vanilla_figure];
        Ok(Scores { figures, detail: json!({"circular": circular.json(), "vanilla": vanilla.json()}) })
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        // The server finds the column by its name; LLaVA inserts it here.
        let at = self.columns.len().min(6);
        let with = |cells: &[String], one: &str| {
            let mut cells = cells.to_vec();
            cells.insert(at, one.into());
            cells
        };
        let rows = self.rows.iter().zip(answers).map(|(row, answer)| with(&row.submitted, answer));
        let bytes = spreadsheet::xlsx(&with(&self.columns, "prediction"), rows)?;
        Ok(vec![("upload.xlsx", bytes)])
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{answers_of, config, fixture_text, score_of};

    fn parsed(text: &Text) -> Result<MmBench, StageError> {
        MmBench::parse(text, &config("mmbench"))
    }

    /// Expected: the result of `VLMEvalKit`'s `can_infer` (commit e8e78f0) on these answers, then its rules for circular and
    /// vanilla evaluation.
    #[test]
    fn scores_are_the_official_ones() {
        let mmbench = parsed(&fixture_text("mmbench/mmbench_dev_20230712.tsv")).unwrap();
        let scores = score_of(&mmbench, &answers_of(&mmbench, "mmbench/answers.jsonl"));
        assert_eq!(scores.figures, [("circular".to_string(), 57.14), ("vanilla".to_string(), 100.0)]);
        let circular = &scores.detail["circular"];
        let coarse = json!({"coarse_perception": 33.33, "finegrained_perception (instance-level)": 100.0, "relation_reasoning": 50.0});
        assert_eq!(circular["l2-category"], coarse);
        assert_eq!(circular["category"]["spatial_relationship"], 0.0);
        assert_eq!(circular["category"]["action_recognition"], 100.0);
    }

    #[test]
    fn a_limit_counts_questions_and_without_rotations_there_is_no_circular_score() {
        let text = fixture_text("mmbench/mmbench_dev_20230712.tsv");
        let base = |mmbench: &MmBench| mmbench.rows.iter().map(|row| row.index % ROTATION).collect::<HashSet<_>>();
        let all = parsed(&text).unwrap();
        let some = MmBench::parse(&text, &EvalConfig { limit: 2, ..config("mmbench") }).unwrap();
        let kept = base(&some);
        assert_eq!(kept.len(), 2);
        let rows = all.rows.iter().filter(|row| kept.contains(&(row.index % ROTATION)));
        assert_eq!(rows.count(), some.rows.len(), "all rotations of a question");

        let mut vanilla = all;
        let keep: Vec<bool> = vanilla.rows.iter().map(|row| row.index < ROTATION).collect();
        let mut flags = keep.iter();
        vanilla.questions.retain(|_| *flags.next().unwrap());
        vanilla.rows.retain(|row| row.index < ROTATION);
        let answers = vec!["A".to_string(); vanilla.rows.len()];
        let figures = score_of(&vanilla, &answers).figures;
        assert_eq!(figures.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["vanilla"]);
    }

    #[test]
    fn questions_have_hints_and_options() {
        let mmbench = parsed(&fixture_text("mmbench/mmbench_dev_20230712.tsv")).unwrap();
        let suffix = "Answer with the option's letter from the given choices directly.";
        assert_eq!(mmbench.questions[3].prompt, format!("Some hint\nQuestion 1?\nA. blue\nB. red\n{suffix}"));
        assert_eq!(mmbench.questions[0].image, Some(Image::Embedded(b"\x89PNG\r\n\x1a\n".as_slice().into())));
    }

    #[test]
    fn an_image_may_be_that_of_another_row() {
        let image = STANDARD.encode([7; 90]);
        let text = |last: &str| Text {
            text: format!(
                "index\tquestion\tA\tB\tanswer\timage\n2\t?\tx\ty\tA\t1\n1\t?\tx\ty\tA\t{image}\n3\t?\tx\ty\tA\t{last}"
            ),
            named: "file".into(),
        };
        let mmbench = parsed(&text("1")).unwrap();
        let expected = Some(Image::Embedded([7; 90].as_slice().into()));
        assert!(mmbench.questions.iter().all(|question| question.image == expected));
        let error = parsed(&text("9")).err().unwrap().to_string();
        assert_eq!(error, "file:4: question 3: its image is that of row 9, which has none");
    }

    #[test]
    fn the_table_for_the_server_is_reproducible() {
        let mmbench = parsed(&fixture_text("mmbench/mmbench_dev_20230712.tsv")).unwrap();
        let answers = answers_of(&mmbench, "mmbench/answers.jsonl");
        let upload = mmbench.uploads(&answers).unwrap();
        assert_eq!(upload, mmbench.uploads(&answers).unwrap());
        let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&upload[0].1)).unwrap();
        let mut strings = String::new();
        std::io::Read::read_to_string(&mut archive.by_name("xl/sharedStrings.xml").unwrap(), &mut strings).unwrap();
        for text in ["index", "prediction", "split", "It shows the left man.", "5"] {
            assert!(strings.contains(&format!(">{text}<")), "{text}");
        }
        assert!(!strings.contains("iVBOR"), "images are not submitted");
    }

    #[test]
    fn broken_tables_are_named_with_the_line() {
        let head = "index\tquestion\tA\tB\tanswer\timage";
        for (rows, words) in [
            ("1\t?\tx\ty\tC\tiVBORw0KGgo=", "file:2: question 1: its answer is not one of its options"),
            ("1\t?\tx\ty\tA\t*", "file:2: question 1: its image is not base64"),
            ("1\t?\tx\ty\tA", "file:2: not a valid row of tab-separated values"),
            ("one\t?\tx\ty\tA\t", "file:2: the index is not a number"),
            ("1\t?\tx\ty\tA\tAAAA\n1\t?\tx\ty\tA\tAAAA", "file: the question id 1 occurs twice"),
            ("", "file: there are no questions"),
        ] {
            let text = Text { text: format!("{head}\n{rows}"), named: "file".into() };
            assert_eq!(parsed(&text).err().unwrap().to_string(), words);
        }
        let text = Text { text: "index\tquestion\n".into(), named: "file".into() };
        assert_eq!(parsed(&text).err().unwrap().to_string(), "file:1: the column `A` is missing");
    }
}
