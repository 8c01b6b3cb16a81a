//! `TextVQA` (Singh et al. 2019, arXiv 1904.08920): questions whose answers are written in the image. Scored like LLaVA with
//! M4C's evaluator, which prepares the answers of model and annotators alike. Independent of other benchmarks.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::percent,
    question::{Benchmark, Mark, Question, Scores, duplicate, duplicate_id, whole},
    vqa_text::{prepare, soft_accuracy},
};
use crate::{Job, StageError};

/// The question file.
#[derive(Debug, Deserialize)]
struct QuestionFile {
    data: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(deserialize_with = "whole")]
    question_id: u64,
    image_id: String,
    question: String,
    answers: Vec<String>,
}

/// The text that an OCR system (Rosetta) found in the images.
#[derive(Debug, Deserialize)]
struct OcrFile {
    data: Vec<Read>,
}

#[derive(Debug, Deserialize)]
struct Read {
    image_id: String,
    ocr_tokens: Vec<String>,
}

/// The questions with the answers of ten annotators.
pub(super) struct TextVqa {
    questions: Vec<Question>,
    answers: Vec<Vec<String>>,
}

impl TextVqa {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["TextVQA_0.5.1_val.json"])?;
        let ocr = files.config.ocr.as_deref().map(|name| files.named_by("ocr", name)).transpose()?;
        let images = files.images(&["textvqa/train_images", "train_images"]);
        Self::parse(&text, ocr.as_ref(), &images, files.config)
    }

    fn parse(text: &Text, ocr: Option<&Text>, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let mut file: QuestionFile = text.json()?;
        if let Some((_, id)) = duplicate(file.data.iter().map(|asked| asked.question_id)) {
            return Err(duplicate_id(&text.named, id));
        }
        if file.data.is_empty() {
            return Err(text.error("there are no questions"));
        }
        if let Some(asked) = file.data.iter().find(|asked| asked.answers.is_empty()) {
            return Err(text.error(format!("question {} has no answers: give the validation set", asked.question_id)));
        }
        file.data.truncate(config.limited(file.data.len()));
        let tokens = ocr.map(tokens).transpose()?;
        let question = |asked: &Asked| {
            let words = match (&tokens, ocr) {
                (Some(tokens), Some(ocr)) => {
                    let read = tokens.get(&asked.image_id);
                    let read = read.ok_or_else(|| ocr.error(format!("the image {} is missing", asked.image_id)))?;
                    format!("{}\nReference OCR token: {}", asked.question, read.join(", "))
                }
                _ => asked.question.clone(),
            };
            let image = images.find(&[&format!("{}.jpg", asked.image_id)]);
            // As in LLaVA, the id is that of the image, which several questions may share.
            Ok(Question::new(asked.image_id.as_str().into(), image, config.prompt(&words)))
        };
        let questions = file.data.iter().map(question).collect::<Result<_, StageError>>()?;
        Ok(Self { questions, answers: file.data.into_iter().map(|asked| asked.answers).collect() })
    }
}

/// OCR tokens by image.
fn tokens(text: &Text) -> Result<HashMap<String, Vec<String>>, StageError> {
    Ok(text.json::<OcrFile>()?.data.into_iter().map(|read| (read.image_id, read.ocr_tokens)).collect())
}

/// The soft accuracy of an answer.
fn accuracy(answer: &str, given: &[String]) -> f64 {
    let answer = prepare(answer);
    soft_accuracy(&given.iter().map(|given| prepare(given) == answer).collect::<Vec<_>>())
}

impl Benchmark for TextVqa {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let given = &self.answers[question];
        Mark::of_given(given.iter().map(String::as_str), accuracy(answer, given))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let scores: Vec<f64> =
            self.answers.iter().zip(answers).map(|(given, answer)| accuracy(answer, given)).collect();
        let accuracy = percent(&scores);
        Ok(Scores { figures: vec![("accuracy".into(), accuracy)], detail: json!({"accuracy": accuracy}) })
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{answers_of, config, fixture_text, score_of};

    fn parsed(ocr: Option<&Text>) -> Result<TextVqa, StageError> {
        let text = fixture_text("textvqa/TextVQA_0.5.1_val.json");
        TextVqa::parse(&text, ocr, &Images::in_folder("train_images"), &config("textvqa"))
    }

    /// Expected: the output of LLaVA's `eval_textvqa.py` for these files.
    #[test]
    fn the_score_is_the_official_one() {
        let textvqa = parsed(None).unwrap();
        let scores = score_of(&textvqa, &answers_of(&textvqa, "textvqa/answers.jsonl"));
        assert_eq!(scores.figures, [("accuracy".to_string(), 78.92)]);
    }

    #[test]
    fn ocr_tokens_follow_the_question() {
        let mut data: Vec<serde_json::Value> = (0..65)
            .map(|number| json!({"image_id": format!("img{number:04}"), "ocr_tokens": ["FOO", "Bar"], "ocr_info": []}))
            .collect();
        let ocr = |data: &[serde_json::Value]| Text { text: json!({"data": data}).to_string(), named: "ocr".into() };
        let textvqa = parsed(Some(&ocr(&data))).unwrap();
        // The first answer of the fixture has LLaVA's prompt.
        let lines: Vec<(usize, serde_json::Value)> = fixture_text("textvqa/answers.jsonl").json_lines().unwrap();
        assert_eq!(textvqa.questions[0].prompt, lines[0].1["prompt"].as_str().unwrap());
        data.remove(3);
        assert_eq!(parsed(Some(&ocr(&data))).err().unwrap().to_string(), "ocr: the image img0003 is missing");
    }
}
