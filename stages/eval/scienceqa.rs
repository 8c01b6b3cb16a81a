//! `ScienceQA` (Lu et al. 2022, arXiv 2209.09513): multiple choice, partly about images. Scored like LLaVA's
//! `eval_science_qa.py`; IMG is the accuracy on questions with an image. (Imp's own script counts every answered question as
//! one with an image.) Independent of other benchmarks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{one_if, rounded},
    ordered_json::InOrder,
    question::{Benchmark, Image, Mark, Question, Scores},
};
use crate::{Job, StageError};

const OPTIONS: [&str; 5] = ["A", "B", "C", "D", "E"];

/// A problem in `problems.json`.
#[derive(Debug, Deserialize)]
struct Problem {
    question: String,
    choices: Vec<String>,
    answer: usize,
    #[serde(default)]
    hint: String,
    image: Option<String>,
}

/// The problems of a split.
pub(super) struct ScienceQa {
    questions: Vec<Question>,
    problems: Vec<Problem>,
}

impl ScienceQa {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let usual = ["data/scienceqa/problems.json", "scienceqa/problems.json", "problems.json"];
        let problems = files.questions(&usual)?;
        let usual = ["data/scienceqa/pid_splits.json", "scienceqa/pid_splits.json", "pid_splits.json"];
        let splits = files.annotations(&usual)?;
        let split = files.config.split();
        let folders = [format!("images/{split}"), format!("scienceqa/{split}"), split.to_string()];
        let images = files.images(&folders.each_ref().map(String::as_str));
        Self::parse(&problems, &splits, &images, files.config)
    }

    fn parse(text: &Text, splits: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let InOrder(lists) = splits.json::<InOrder<Vec<String>>>()?;
        let list = lists.into_iter().find(|(name, _)| name == config.split()).map(|(_, list)| list);
        let mut ids = list
            .filter(|list| !list.is_empty())
            .ok_or_else(|| splits.error(format!("there is no split `{}`", config.split())))?;
        ids.truncate(config.limited(ids.len()));
        let InOrder(entries) = text.json::<InOrder<Problem>>()?;
        let mut by_id: std::collections::HashMap<String, Problem> = entries.into_iter().collect();
        let mut all = Self { questions: Vec::new(), problems: Vec::new() };
        for id in ids {
            let problem = by_id
                .remove(&id)
                .ok_or_else(|| text.error(format!("problem {id} is missing here, or occurs twice in the split")))?;
            if problem.answer >= OPTIONS.len() {
                return Err(text.error(format!("problem {id}: there is no option {}", problem.answer)));
            }
            let file = problem.image.as_ref().map(|image| images.find(&[&format!("{id}/{image}")]));
            let prompt = config.prompt(&words(&problem));
            let category = String::new();
            all.questions.push(Question { id: id.as_str().into(), image: file.map(Image::File), prompt, category });
            all.problems.push(problem);
        }
        Ok(all)
    }

    /// The official figures. A missing answer is wrong; like LLaVA, don't count its question as one with an image.
    fn tally<'a>(&self, answers: impl Iterator<Item = Option<&'a str>>) -> Tally {
        let mut tally = Tally::default();
        for ((question, problem), answer) in self.questions.iter().zip(&self.problems).zip(answers) {
            let right = answer.is_some_and(|answer| is_right(problem, answer));
            tally.all.add(right);
            if answer.is_some() && question.image.is_some() {
                tally.with_image.add(right);
            }
        }
        tally
    }
}

/// The text of a problem as in LLaVA's `llava_test_CQM-A.json`: context, question, and the choices on one line.
fn words(problem: &Problem) -> String {
    let context = if problem.hint.trim().is_empty() { "N/A" } else { problem.hint.trim() };
    let choices: Vec<String> =
        OPTIONS.iter().zip(&problem.choices).map(|(letter, choice)| format!("{letter}. {choice}")).collect();
    format!("Context: {context}\n{}\n{}", problem.question, choices.join(" "))
}

/// Whether an answer names the right choice.
fn is_right(problem: &Problem, answer: &str) -> bool {
    chosen(answer).filter(|choice| *choice < problem.choices.len()) == Some(problem.answer)
}

/// The index of the choice that an answer names: `B`, `B. ...`, or exactly one `The answer is B` that is followed by another
/// character.
fn chosen(answer: &str) -> Option<usize> {
    let option = |text: &str| OPTIONS.iter().position(|option| *option == text);
    if let Some(choice) = option(answer) {
        return Some(choice);
    }
    if let Some((letter, _)) = answer.split_once(". ")
        && let Some(choice) = option(letter)
    {
        return Some(choice);
    }
    let mut named = answer.match_indices(ANSWER_IS).filter_map(|(at, _)| {
        let mut rest = answer[at + ANSWER_IS.len()..].chars();
        let letter = rest.next().filter(char::is_ascii_uppercase)?;
        rest.next().filter(|next| *next != '\n')?;
        Some(letter)
    });
    let letter = named.next()?;
    if named.next().is_some() { None } else { option(letter.encode_utf8(&mut [0; 4])) }
}

const ANSWER_IS: &str = "The answer is ";

#[derive(Debug, Default, PartialEq)]
struct Tally {
    all: Count,
    with_image: Count,
}

#[derive(Debug, Default, PartialEq)]
struct Count {
    right: usize,
    total: usize,
}

impl Count {
    fn add(&mut self, right: bool) {
        self.right += usize::from(right);
        self.total += 1;
    }

    fn figure(&self) -> f64 {
        rounded(self.right as f64 / self.total.max(1) as f64 * 100.0, 2)
    }

    fn json(&self) -> Value {
        json!({"accuracy": self.figure(), "correct": self.right, "questions": self.total})
    }
}

impl Benchmark for ScienceQa {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let problem = &self.problems[question];
        let choice = problem.choices.get(problem.answer).map_or("", String::as_str);
        Mark::new(format!("{}. {choice}", OPTIONS[problem.answer]), one_if(is_right(problem, answer)))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let tally = self.tally(answers.iter().map(|answer| Some(answer.as_str())));
        let figures = vec![("img_accuracy".into(), tally.with_image.figure()), ("accuracy".into(), tally.all.figure())];
        Ok(Scores { figures, detail: json!({"all": tally.all.json(), "with_image": tally.with_image.json()}) })
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{config, fixture_text, score_of};

    fn parsed() -> ScienceQa {
        let [problems, splits] = ["problems", "pid_splits"].map(|name| fixture_text(&format!("scienceqa/{name}.json")));
        ScienceQa::parse(&problems, &splits, &Images::in_folder("test"), &config("scienceqa")).unwrap()
    }

    /// Expected: LLaVA's script on these files. 7 of 20 are right; 12 questions with an image have an answer, 4 of them the
    /// right one.
    #[test]
    fn scores_are_the_official_ones() {
        let scienceqa = parsed();
        let lines: Vec<(usize, Value)> = fixture_text("scienceqa/answers.jsonl").json_lines().unwrap();
        let answer = |question: &Question| {
            let line = lines.iter().find(|(_, line)| line["question_id"] == json!(question.id));
            line.map(|(_, line)| line["text"].as_str().unwrap())
        };
        score_of(&scienceqa, &vec![String::new(); scienceqa.questions.len()]);
        let tally = scienceqa.tally(scienceqa.questions.iter().map(answer));
        assert_eq!((tally.all.figure(), tally.with_image.figure()), (35.0, 33.33));
        assert_eq!((tally.all.right, tally.with_image.total), (7, 12));
    }

    /// Expected: how LLaVA's script reads each answer.
    #[test]
    fn answers_are_read_as_the_reference_reads_them() {
        for (answer, choice) in [
            ("A", Some(0)),
            ("B. a frog", Some(1)),
            ("C. x", Some(2)),
            ("The answer is B.", Some(1)),
            ("LECTURE: x. The answer is A.", Some(0)),
            ("The answer is D!", Some(3)),
            ("B.", None),
            ("The answer is B", None),
            ("FAILED", None),
            ("b", None),
            (" B", None),
            ("A) frog", None),
            ("Because it is, A", None),
            ("The answer is A. The answer is B.", None),
        ] {
            assert_eq!(chosen(answer), choice, "{answer:?}");
        }
    }

    #[test]
    fn only_problems_with_an_image_have_one() {
        let scienceqa = parsed();
        let question = &scienceqa.questions[0];
        assert_eq!(question.image, Some(Image::File("test/10/image.png".into())));
        let prompt = "Context: N/A\nQ0?\nA. choice 0 B. choice 1\nAnswer with the option's letter from the given choices \
                      directly.";
        assert_eq!(question.prompt, prompt);
        assert_eq!(scienceqa.questions[2].image, None);
    }

    #[test]
    fn a_split_must_match_the_problems() {
        let problems = fixture_text("scienceqa/problems.json");
        for (splits, words) in [
            (r#"{"test": ["10", "99"]}"#, "scienceqa/problems.json: problem 99"),
            (r#"{"val": ["10"]}"#, "split: there is no split `test`"),
        ] {
            let splits = Text { text: splits.into(), named: "split".into() };
            let error =
                ScienceQa::parse(&problems, &splits, &Images::in_folder(""), &config("scienceqa")).err().unwrap();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }
}
