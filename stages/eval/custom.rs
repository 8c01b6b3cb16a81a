//! The user's own questions: a question file in LLaVA's format whose lines also have one or several right answers. An answer
//! is right if it equals one of them after the VQA scorer's normalisation. Independent of other benchmarks.

use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{Means, one_if, percent},
    question::{Benchmark, Id, Image, Mark, Question, Scores, duplicate, duplicate_id},
    vqa_text::normalize,
};
use crate::{Job, StageError, contract::paths::stays_inside};

const FORMAT: &str =
    "write one JSON object per line with `question_id`, `text`, `answer` and, if there is one, `image`";

/// A line of the file.
#[derive(Debug, Deserialize)]
struct Line {
    question_id: Id,
    #[serde(default)]
    image: Option<String>,
    text: String,
    #[serde(default)]
    category: String,
    answer: References,
}

/// The right answer, or several.
#[derive(Debug)]
struct References(Vec<String>);

impl<'de> Deserialize<'de> for References {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let one = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        };
        let all = match &Value::deserialize(deserializer)? {
            // No answer: told with the question's id.
            Value::Null => Some(Vec::new()),
            Value::Array(list) => list.iter().map(one).collect(),
            value => one(value).map(|one| vec![one]),
        };
        all.map(Self).ok_or_else(|| D::Error::custom("`answer` must be a string, a number, or a list of them"))
    }
}

/// The questions with their right answers.
pub(super) struct Custom {
    questions: Vec<Question>,
    right: Vec<Vec<String>>,
}

impl Custom {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["questions.jsonl"])?;
        Self::parse(&text, &files.images(&["images", "."]), files.config)
    }

    fn parse(text: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let lines: Vec<(usize, Line)> = text.json_lines().map_err(with_format)?;
        if let Some((index, id)) = duplicate(lines.iter().map(|(_, line)| line.question_id.clone())) {
            return Err(duplicate_id(&text.named, id).at_line(lines[index].0));
        }
        if lines.is_empty() {
            return Err(with_format(text.error("there are no questions")));
        }
        let count = config.limited(lines.len());
        let mut custom = Self { questions: Vec::new(), right: Vec::new() };
        for (number, line) in lines.into_iter().take(count) {
            let References(right) = line.answer;
            if right.is_empty() {
                let message = format!("question {} has no right answer", line.question_id);
                return Err(StageError::input(
                    &text.named,
                    message,
                    "give `answer` a string, a number, or a list of them",
                )
                .at_line(number));
            }
            if let Some(image) = line.image.as_ref().filter(|image| !stays_inside(image)) {
                let message = format!("the image {} lies outside the stage's input", image.escape_debug());
                let help =
                    "give images by their paths in the data's folder: what lies elsewhere could change unnoticed";
                return Err(StageError::input(&text.named, message, help).at_line(number));
            }
            custom.right.push(right);
            custom.questions.push(Question {
                id: line.question_id,
                image: line.image.map(|image| Image::File(images.find(&[&image]))),
                prompt: config.prompt(&line.text),
                category: line.category,
            });
        }
        Ok(custom)
    }
}

/// Replaces the help for published files by that for the user's own.
fn with_format(error: StageError) -> StageError {
    match error {
        StageError::Input { file, line, message, .. } => StageError::Input { file, line, message, help: FORMAT.into() },
        other => other,
    }
}

/// Whether an answer is one of the right ones: the same text, or the same after VQA's normalisation. That drops articles, which may be
/// the whole answer (`A`), and signs, which may be what matters (`-5`).
fn is_right(answer: &str, right: &[String]) -> bool {
    let plain = |text: &str| text.trim().trim_end_matches('.').to_lowercase();
    let signs = |text: &str| {
        let next = text.chars().skip(1);
        let is_sign = |(sign, next): &(char, char)| "-+<>=".contains(*sign) && next.is_ascii_digit();
        text.chars().zip(next).filter(is_sign).map(|(sign, _)| sign).collect::<String>()
    };
    let (own, normal) = (plain(answer), normalize(answer));
    right.iter().any(|right| {
        (!own.is_empty() && own == plain(right))
            || (!normal.is_empty() && normal == normalize(right) && signs(answer) == signs(right))
    })
}

impl Benchmark for Custom {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let right = &self.right[question];
        Mark::of_given(right.iter().map(String::as_str), one_if(is_right(answer, right)))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let (mut all, mut by_category) = (Vec::new(), Means::default());
        for ((question, right), answer) in self.questions.iter().zip(&self.right).zip(answers) {
            let score = one_if(is_right(answer, right));
            all.push(score);
            by_category.add(&question.category, score);
        }
        let detail = json!({"accuracy": percent(&all), "categories": by_category.json()});
        Ok(Scores { figures: vec![("accuracy".into(), percent(&all))], detail })
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{config, score_of};

    fn parsed(lines: &[&str]) -> Result<Custom, StageError> {
        let text = Text { text: lines.join("\n"), named: "file".into() };
        Custom::parse(&text, &Images::in_folder("images"), &config("custom"))
    }

    #[test]
    fn an_answer_is_right_if_it_equals_a_reference() {
        let custom = parsed(&[
            r#"{"question_id": "q1", "image": "1.png", "text": "What?", "category": "things", "answer": ["a couch", "sofa"]}"#,
            r#"{"question_id": 2, "text": "How many?", "category": "numbers", "answer": "2"}"#,
            r#"{"question_id": 3, "text": "How many?", "category": "numbers", "answer": "3"}"#,
        ])
        .unwrap();
        assert_eq!(custom.questions[0].image, Some(Image::File("images/1.png".into())));
        assert_eq!(custom.questions[1].image, None);
        assert_eq!(custom.questions[1].prompt, "How many?");
        let answers = ["The Couch.", "two", "2"].map(String::from);
        let scores = score_of(&custom, &answers);
        assert_eq!(scores.figures, [("accuracy".to_string(), 66.67)]);
        assert_eq!(scores.detail["categories"], json!({"numbers": 50.0, "things": 100.0}));
    }

    #[test]
    fn numbers_are_answers_and_an_array_is_read_like_lines() {
        let lines = [
            r#"{"question_id": 1, "text": "How many?", "answer": 3}"#,
            r#"{"question_id": "2", "text": "How many?", "answer": [4, "four", 4.5]}"#,
        ];
        for custom in [parsed(&lines).unwrap(), parsed(&["[", lines[0], ",", lines[1], "]"]).unwrap()] {
            assert_eq!(custom.right, [vec!["3".to_string()], vec!["4".into(), "four".into(), "4.5".into()]]);
        }
    }

    #[test]
    fn articles_and_signs_are_what_some_answers_consist_of() {
        for (answer, right, is) in [
            ("A", "A", true),
            ("a.", "A", true),
            ("", "A", false),
            (".", "A", false),
            ("the", "A", false),
            ("B", "A", false),
            ("-5", "-5", true),
            ("5", "-5", false),
            ("-5", "5", false),
            ("It's -5", "It's -5", true),
            (">5", "<5", false),
            ("An apple!", "apple", true),
            ("T-shirt", "t shirt", true),
        ] {
            assert_eq!(is_right(answer, &[right.to_string()]), is, "{answer:?} for {right:?}");
        }
    }

    #[test]
    fn images_lie_in_the_data() {
        for image in ["/data/1.png", "../1.png", "a/../../1.png"] {
            let line = json!({"question_id": 1, "text": "?", "answer": "x", "image": image}).to_string();
            let error = parsed(&[&line]).err().unwrap().to_string();
            assert!(error.contains("file:1") && error.contains("lies outside"), "{error}");
        }
    }

    #[test]
    fn mistakes_are_named_with_the_line() {
        let good = r#"{"question_id": 1, "text": "?", "answer": "x"}"#;
        for (lines, words) in [
            ([good, good], "file:2: the question id 1 occurs twice"),
            ([good, r#"{"question_id": 2, "text": "?", "answer": []}"#], "file:2: question 2 has no right answer"),
            ([good, r#"{"question_id": 2, "text": "?"}"#], "file:2: the key `answer` is missing"),
            ([good, r#"{"question_id": [2], "text": "?"}"#], "file:2: a question id must be an integer or a string"),
            (
                [good, r#"{"question_id": 2, "text": "?", "answer": {}}"#],
                "file:2: `answer` must be a string, a number, or a list of them",
            ),
            ([good, r#"{"question_id": "1", "text": "?", "answer": "x"}"#], "file:2: the question id 1 occurs twice"),
            ([good, r#"{"question_id": 2, "text": "?", "answer": null}"#], "file:2: question 2 has no right answer"),
            (["[", good], "file:2: the file ends inside the array; it may be truncated"),
            (["", ""], "file: there are no questions"),
        ] {
            let error = parsed(&lines).err().unwrap();
            assert_eq!(error.to_string(), words);
            assert!(!error.help().unwrap().contains("benchmark"), "{error:?}");
        }
    }
}
