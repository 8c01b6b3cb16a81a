//! `MM-Vet` (Yu et al. 2023, arXiv 2308.02490): open questions, whose answers a language model judges. Without a judge there
//! is a file of answers for the official evaluator, and no score.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    map::InOrder,
    question::{Benchmark, Id, Question, Scores},
};
use crate::{Job, StageError};

/// An entry of the file.
#[derive(Debug, Deserialize)]
struct Asked {
    imagename: String,
    question: String,
}

/// The questions, and how the official files name them.
pub(super) struct MmVet {
    questions: Vec<Question>,
    names: Vec<String>,
}

impl MmVet {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["mm-vet/mm-vet.json", "mm-vet.json"])?;
        Self::parse(&text, &files.images(&["mm-vet/images", "images"]), files.config)
    }

    fn parse(text: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let InOrder(mut entries) = text.json::<InOrder<Asked>>()?;
        if entries.is_empty() {
            return Err(text.error("there are no questions"));
        }
        entries.truncate(config.limited(entries.len()));
        let question = |(name, asked): &(String, Asked)| {
            // LLaVA's files have `v1_17` as 17.
            let number = name.strip_prefix("v1_").and_then(|number| number.parse().ok());
            let id = number.map_or_else(|| name.as_str().into(), Id::Number);
            Question::new(id, images.find(&[&asked.imagename]), config.prompt(&asked.question))
        };
        let questions = entries.iter().map(question).collect();
        Ok(Self { questions, names: entries.into_iter().map(|(name, _)| name).collect() })
    }
}

impl Benchmark for MmVet {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn score(&self, _answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        Ok(Scores::default())
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        let all: Map<String, Value> =
            self.names.iter().cloned().zip(answers.iter().map(|answer| answer.clone().into())).collect();
        let text = serde_json::to_vec_pretty(&all).unwrap_or_default();
        Ok(vec![("upload.json", text)])
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{answers_of, config, fixture_text, job};

    #[test]
    fn without_a_judge_there_are_answers_for_the_official_evaluator() {
        let text = fixture_text("mm-vet/mm-vet.json");
        let mmvet = MmVet::parse(&text, &Images::in_folder("images"), &config("mmvet")).unwrap();
        let answers = answers_of(&mmvet, "mm-vet/answers.jsonl");
        assert_eq!(mmvet.questions[0].prompt, "Question 0?");
        assert_eq!(mmvet.score(&answers, &job()).unwrap(), Scores::default());
        let upload: Value = serde_json::from_slice(&mmvet.uploads(&answers).unwrap()[0].1).unwrap();
        assert_eq!(upload["v1_3"], "answer 3 | with pipe\nand newline");
        assert_eq!(upload.as_object().unwrap().len(), 8);
    }
}
