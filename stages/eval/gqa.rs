//! GQA (Hudson and Manning 2019, arXiv 1902.09506): questions made from scene graphs. Scored like the official `eval.py` on
//! answers prepared by LLaVA. Like LLaVA, leaves out validity and other figures whose files are not published for testdev.
//! Independent of other benchmarks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{Means, one_if},
    ordered_json::InOrder,
    question::{Benchmark, Mark, Question, Scores},
};
use crate::{Job, StageError};

/// An entry of the question file, which maps ids to entries.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    question: String,
    image_id: String,
    answer: String,
    is_balanced: bool,
    types: Types,
    semantic: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
struct Types {
    structural: String,
    semantic: String,
}

/// A step of the program that computes the answer from the scene graph.
#[derive(Debug, Deserialize)]
struct Operation {
    operation: String,
    argument: String,
}

/// The questions and their entries.
pub(super) struct Gqa {
    questions: Vec<Question>,
    asked: Vec<Asked>,
}

impl Gqa {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["gqa/testdev_balanced_questions.json", "testdev_balanced_questions.json"])?;
        Self::parse(&text, &files.images(&["gqa/images", "images"]), files.config)
    }

    fn parse(text: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let InOrder(mut entries) = text.json::<InOrder<Asked>>()?;
        if entries.is_empty() {
            return Err(text.error("there are no questions"));
        }
        entries.truncate(config.limited(entries.len()));
        let question = |(id, asked): &(String, Asked)| {
            let image = images.find(&[&format!("{}.jpg", asked.image_id)]);
            let question = Question::new(id.as_str().into(), image, config.prompt(&asked.question));
            Question { category: asked.types.structural.clone(), ..question }
        };
        let questions = entries.iter().map(question).collect();
        Ok(Self { questions, asked: entries.into_iter().map(|(_, asked)| asked).collect() })
    }
}

/// Prepares an answer for submission, like LLaVA.
fn prepare(answer: &str) -> String {
    answer.trim_end_matches('.').to_lowercase()
}

/// The number of reasoning steps, without those that only state the result.
fn steps(asked: &Asked) -> usize {
    let states_the_result = |step: &&Operation| {
        let text = format!("{}: {}", step.operation, step.argument);
        ["exist", "query: name", "choose name"].iter().any(|part| text.contains(part))
    };
    asked.semantic.len() - asked.semantic.iter().filter(states_the_result).count()
}

impl Benchmark for Gqa {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let truth = &self.asked[question].answer;
        Mark::new(truth, one_if(prepare(answer) == *truth))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let [mut kinds, mut structural, mut semantic, mut by_steps, mut by_words] =
            std::array::from_fn(|_| Means::default());
        for (asked, answer) in self.asked.iter().zip(answers).filter(|(asked, _)| asked.is_balanced) {
            let score = one_if(prepare(answer) == asked.answer);
            kinds.add("accuracy", score);
            kinds.add(if asked.types.structural == "query" { "open" } else { "binary" }, score);
            structural.add(&asked.types.structural, score);
            semantic.add(&asked.types.semantic, score);
            by_steps.add(steps(asked).to_string(), score);
            by_words.add(asked.question.split_whitespace().count().to_string(), score);
        }
        let figures = ["accuracy", "binary", "open"].map(|kind| (kind.to_string(), kinds.figure(kind)));
        let detail = json!({
            "accuracy": kinds.json(), "structural_type": structural.json(), "semantic_type": semantic.json(),
            "steps": by_steps.json(), "words": by_words.json(),
        });
        Ok(Scores { figures: figures.to_vec(), detail })
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        let line = |(question, answer): (&Question, &String)| json!({"questionId": question.id, "prediction": prepare(answer)});
        let lines: Value = self.questions.iter().zip(answers).map(line).collect();
        Ok(vec![("testdev_balanced_predictions.json", lines.to_string().into_bytes())])
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::{
        question::Image,
        tests::{answers_of, config, fixture_text, score_of},
    };

    fn parsed() -> Gqa {
        let text = fixture_text("gqa/testdev_balanced_questions.json");
        Gqa::parse(&text, &Images::in_folder("images"), &config("gqa")).unwrap()
    }

    /// Expected: the official `eval.py`'s arithmetic, run in Python on the predictions that LLaVA's
    /// `convert_gqa_for_eval.py` makes from the same answers.
    #[test]
    fn scores_are_the_official_ones() {
        let gqa = parsed();
        let scores = score_of(&gqa, &answers_of(&gqa, "gqa/answers.jsonl"));
        let figures = [("accuracy", 50.0), ("binary", 45.45), ("open", 60.0)];
        assert_eq!(scores.figures, figures.map(|(name, value)| (name.to_string(), value)));
        assert_eq!(scores.detail["structural_type"]["verify"], 33.33);
        assert_eq!(scores.detail["semantic_type"]["obj"], 16.67);
        assert_eq!(scores.detail["steps"], json!({"1": 0.0, "2": 62.5, "3": 60.0}));
        assert_eq!(scores.detail["words"], json!({"3": 80.0, "4": 50.0, "5": 33.33, "6": 25.0}));
    }

    #[test]
    fn prompts_equal_llavas() {
        let gqa = parsed();
        let lines: Vec<(usize, Value)> = fixture_text("gqa/llava_gqa_testdev_balanced.jsonl").json_lines().unwrap();
        assert_eq!(gqa.questions.len(), lines.len());
        for (question, (_, line)) in gqa.questions.iter().zip(lines) {
            assert_eq!(json!(question.id), line["question_id"]);
            assert_eq!(question.prompt, line["text"].as_str().unwrap());
            let image = Image::File(format!("images/{}", line["image"].as_str().unwrap()).into());
            assert_eq!(question.image, Some(image));
        }
    }

    #[test]
    fn predictions_are_what_the_official_scorer_reads() {
        let gqa = parsed();
        let uploads = gqa.uploads(&answers_of(&gqa, "gqa/answers.jsonl")).unwrap();
        let lines: Value = serde_json::from_slice(&uploads[0].1).unwrap();
        assert_eq!(lines[2], json!({"questionId": "201900002", "prediction": "left"}));
    }

    #[test]
    fn a_repeated_question_is_named() {
        let one = r#"{"question": "?", "imageId": "n", "answer": "a", "isBalanced": true, "types":
            {"structural": "query", "semantic": "obj"}, "semantic": []}"#;
        let text = Text { text: format!("{{\"7\": {one}, \"7\": {one}}}"), named: "file".into() };
        let error = Gqa::parse(&text, &Images::in_folder(""), &config("gqa")).err().unwrap();
        assert!(error.to_string().contains("the question id 7 occurs twice"), "{error}");
    }
}
