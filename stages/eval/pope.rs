//! POPE (Li et al. 2023, arXiv 2305.10355): whether an object is in the image. Three sets of questions differ in how absent
//! objects are selected. Scored like LLaVA's `eval_pope`, except that answers are matched by id and not by position.
//! Independent of other benchmarks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{one_if, rounded},
    question::{Benchmark, Id, Mark, Question, Scores, duplicate, duplicate_id, whole},
};
use crate::{Job, StageError};

/// The sets, in the order of LLaVA's question numbers.
const CATEGORIES: [&str; 3] = ["adversarial", "popular", "random"];

/// The questions of all three sets.
#[derive(Default)]
pub(super) struct Pope {
    questions: Vec<Question>,
    /// Whether the right answer is yes.
    labels: Vec<bool>,
    /// How many questions the sets have that were added, whatever the limit.
    numbered: u64,
}

/// A line of POPE's files.
#[derive(Debug, Deserialize)]
struct Line {
    #[serde(deserialize_with = "whole")]
    question_id: u64,
    image: String,
    text: String,
    label: Label,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Label {
    Yes,
    No,
}

impl Pope {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let usual = ["eval/pope", "output/coco", ".", "coco"];
        let images = files.images(&["eval/images", "val2014", "."]);
        let mut pope = Self::default();
        for category in CATEGORIES {
            let name = format!("coco_pope_{category}.json");
            let folder = files.question_folder(&usual, &name)?;
            pope.add(category, &files.read(&folder.join(name))?, &images, files.config)?;
        }
        Ok(pope)
    }

    /// Adds a set. Ids are unique only within a file, so questions are numbered across all sets, as in LLaVA.
    fn add(
        &mut self,
        category: &'static str,
        text: &Text,
        images: &Images,
        config: &EvalConfig,
    ) -> Result<(), StageError> {
        let lines: Vec<(usize, Line)> = text.json_lines()?;
        if let Some((index, id)) = duplicate(lines.iter().map(|(_, line)| line.question_id)) {
            return Err(duplicate_id(&text.named, id).at_line(lines[index].0));
        }
        if lines.is_empty() {
            return Err(text.error("there are no questions"));
        }
        // Whatever the limit, so that a file of prompts for all questions means the same ones.
        let before = self.numbered;
        self.numbered += lines.len() as u64;
        let count = config.limited(lines.len());
        for (number, (_, line)) in (before + 1..).zip(lines).take(count) {
            let id = Id::Number(number);
            let question = Question::new(id, images.find(&[&line.image]), config.prompt(&line.text));
            self.questions.push(Question { category: category.into(), ..question });
            self.labels.push(line.label == Label::Yes);
        }
        Ok(())
    }
}

impl Benchmark for Pope {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let label = self.labels[question];
        Mark::new(if label { "yes" } else { "no" }, one_if(says_yes(answer) == label))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let counts = CATEGORIES.map(|category| {
            let mut counts = Counts::default();
            for ((question, label), answer) in self.questions.iter().zip(&self.labels).zip(answers) {
                if question.category == category {
                    counts.add(*label, says_yes(answer));
                }
            }
            counts
        });
        let mean = |figure: fn(&Counts) -> f64| counts.iter().map(figure).sum::<f64>() / counts.len() as f64;
        // In per cent, as those of other benchmarks; `detail` has the fractions of the official script.
        let percent = |fraction: f64| rounded(100.0 * fraction, 2);
        let mut figures = vec![
            ("f1".into(), percent(mean(Counts::f1))),
            ("accuracy".into(), percent(mean(Counts::accuracy))),
            ("yes_ratio".into(), percent(mean(Counts::yes_ratio))),
        ];
        for (category, counts) in CATEGORIES.iter().zip(&counts) {
            figures.push((format!("{category}_f1"), percent(counts.f1())));
            figures.push((format!("{category}_accuracy"), percent(counts.accuracy())));
        }
        let detail = CATEGORIES.iter().zip(&counts).map(|(category, counts)| ((*category).to_string(), counts.json()));
        let mut detail: serde_json::Map<String, Value> = detail.collect();
        let overall = json!({
            "accuracy": mean(Counts::accuracy), "precision": mean(Counts::precision), "recall": mean(Counts::recall),
            "f1": mean(Counts::f1), "yes_ratio": mean(Counts::yes_ratio),
        });
        detail.insert("mean".into(), overall);
        Ok(Scores { figures, detail: Value::Object(detail) })
    }
}

/// Reads an answer: no if its first sentence, without commas, has the word `No`, `not` or `no`, otherwise yes.
fn says_yes(answer: &str) -> bool {
    let sentence = answer.split('.').next().unwrap_or_default().replace(',', "");
    !sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no"))
}

/// The confusion matrix; yes is the positive class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    true_positives: usize,
    false_positives: usize,
    true_negatives: usize,
    false_negatives: usize,
}

/// `part / whole`, but 0 for 0 / 0, where the reference fails.
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

impl Counts {
    fn add(&mut self, truth: bool, answer: bool) {
        *match (truth, answer) {
            (true, true) => &mut self.true_positives,
            (false, true) => &mut self.false_positives,
            (false, false) => &mut self.true_negatives,
            (true, false) => &mut self.false_negatives,
        } += 1;
    }

    fn total(&self) -> usize {
        self.true_positives + self.false_positives + self.true_negatives + self.false_negatives
    }

    fn accuracy(&self) -> f64 {
        ratio(self.true_positives + self.true_negatives, self.total())
    }

    fn precision(&self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_positives)
    }

    fn recall(&self) -> f64 {
        ratio(self.true_positives, self.true_positives + self.false_negatives)
    }

    fn f1(&self) -> f64 {
        let (precision, recall) = (self.precision(), self.recall());
        if precision + recall == 0.0 { 0.0 } else { 2.0 * precision * recall / (precision + recall) }
    }

    fn yes_ratio(&self) -> f64 {
        ratio(self.true_positives + self.false_positives, self.total())
    }

    fn json(&self) -> Value {
        json!({
            "questions": self.total(), "true_positives": self.true_positives, "false_positives": self.false_positives,
            "true_negatives": self.true_negatives, "false_negatives": self.false_negatives, "accuracy": self.accuracy(),
            "precision": self.precision(), "recall": self.recall(), "f1": self.f1(), "yes_ratio": self.yes_ratio(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::eval::tests::{answers_of, config, fixture, fixture_text, score_of};

    /// The fixture's questions with the answers of one of its files, matched by id.
    fn scored(answers: &str) -> Scores {
        let mut pope = Pope::default();
        for category in CATEGORIES {
            let text = fixture_text(&format!("pope/coco_pope_{category}.json"));
            pope.add(category, &text, &Images::in_folder("images"), &config("pope")).unwrap();
        }
        let answers = answers_of(&pope, &format!("pope/{answers}"));
        score_of(&pope, &answers)
    }

    /// A file of prompts has the ids of all questions.
    #[test]
    fn ids_do_not_depend_on_the_limit() {
        let (mut all, mut some) = (Pope::default(), Pope::default());
        let limited = EvalConfig { limit: 1, ..config("pope") };
        for category in CATEGORIES {
            let text = fixture_text(&format!("pope/coco_pope_{category}.json"));
            all.add(category, &text, &Images::in_folder("images"), &config("pope")).unwrap();
            some.add(category, &text, &Images::in_folder("images"), &limited).unwrap();
        }
        assert_eq!(some.questions.len(), CATEGORIES.len());
        for question in &some.questions {
            let same = all.questions.iter().find(|other| other.id == question.id).unwrap();
            assert_eq!((&same.category, &same.prompt), (&question.category, &question.prompt));
        }
    }

    #[test]
    fn scores_are_the_official_ones_digit_for_digit() {
        let text = std::fs::read_to_string(fixture("pope/expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        // The official script's output, a block of lines per set.
        let printed = expected["in_order"]["stdout"].as_str().unwrap();
        for answers in ["answers.jsonl", "answers_shuffled.jsonl"] {
            let scores = scored(answers);
            for category in CATEGORIES {
                let block = printed.split("Category: ").find(|block| block.starts_with(category)).unwrap();
                for (label, name) in [
                    ("Accuracy", "accuracy"),
                    ("Precision", "precision"),
                    ("Recall", "recall"),
                    ("F1 score", "f1"),
                    ("Yes ratio", "yes_ratio"),
                ] {
                    let value = block.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(": ")).unwrap();
                    assert_eq!(scores.detail[category][name].to_string(), value, "{answers} {category} {name}");
                }
            }
        }
        let scores = scored("answers.jsonl");
        let percent = rounded(100.0 * scores.detail["mean"]["f1"].as_f64().unwrap(), 2);
        assert_eq!(scores.figures[0], ("f1".to_string(), percent));
        assert!(percent > 1.0);
        let recalls = CATEGORIES.map(|category| scores.detail[category]["recall"].as_f64().unwrap());
        assert!((scores.detail["mean"]["recall"].as_f64().unwrap() - recalls.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_model_that_always_says_no_gets_figures() {
        let scores = scored("answers_all_no.jsonl");
        assert_eq!(scores.detail["random"]["true_negatives"], 15);
        assert_eq!(scores.detail["random"]["f1"], 0.0);
        assert_eq!(scores.detail["random"]["accuracy"], 0.6);
    }

    #[test]
    fn answers_are_read_as_the_reference_reads_them() {
        let text = std::fs::read_to_string(fixture("pope/expected.json")).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        for (answer, reading) in expected["parsed"].as_object().unwrap() {
            assert_eq!(says_yes(answer), reading == "yes", "{answer:?}");
        }
    }

    #[test]
    fn broken_files_are_named_with_the_line() {
        let good = r#"{"question_id": 1, "image": "a", "text": "?", "label": "yes"}"#;
        for (text, line, words) in [
            (format!("{good}\n{good}\n"), Some(2), "the question id 1 occurs twice"),
            (format!("{good}\n\n{{\"question_id\": 2}}"), Some(3), "is missing"),
            (format!("[{good},\n{good}]"), Some(2), "the question id 1 occurs twice"),
            (good.replace('1', "[1]"), Some(1), "where a whole number must be"),
            (good.replace("yes", "maybe"), Some(1), "`maybe` is none of `yes` or `no`"),
            (String::new(), None, "no questions"),
        ] {
            let text = Text { text, named: "file".into() };
            let images = Images::in_folder("images");
            let error = Pope::default().add("random", &text, &images, &config("pope")).unwrap_err();
            let start = line.map_or("file: ".to_string(), |line| format!("file:{line}: "));
            assert!(error.to_string().starts_with(&start) && error.to_string().contains(words), "{error}");
        }
    }
}
