//! `VizWiz` (Gurari et al. 2018, arXiv 1802.08218): questions by blind people about their photos, some of which can't be
//! answered. Scored like the official scorer: the answer, prepared by LLaVA, is normalised again, and the ten annotators'
//! answers are used unchanged. Answers to the test set are not public; for its questions, writes a file for the server.
//! Independent of other benchmarks.

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{Means, one_if, percent},
    question::{Benchmark, Mark, Question, Scores, duplicate, duplicate_id},
    vqa_text::{normalize, prepare, soft_accuracy, vqa_accuracy},
};
use crate::{Job, StageError};

/// An entry of the question file.
#[derive(Debug, Deserialize)]
struct Asked {
    image: String,
    question: String,
    /// Empty in the test set, as are the fields below.
    #[serde(default)]
    answers: Vec<Given>,
    #[serde(default)]
    answer_type: String,
    #[serde(default)]
    answerable: u8,
}

#[derive(Debug, Deserialize)]
struct Given {
    answer: String,
}

/// The questions and their entries.
pub(super) struct VizWiz {
    questions: Vec<Question>,
    asked: Vec<Asked>,
}

impl VizWiz {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["Annotations/val.json", "annotations/val.json", "val.json"])?;
        Self::parse(&text, &files.images(&["val", "test", "."]), files.config)
    }

    fn parse(text: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let mut asked: Vec<Asked> = text.json()?;
        if asked.is_empty() {
            return Err(text.error("there are no questions"));
        }
        if let Some((_, image)) = duplicate(asked.iter().map(|asked| asked.image.as_str())) {
            return Err(duplicate_id(&text.named, image));
        }
        let without = asked.iter().find(|asked| asked.answers.is_empty());
        if let Some(without) = without.filter(|_| asked.iter().any(|asked| !asked.answers.is_empty())) {
            return Err(text.error(format!("question {} has no answers", without.image)));
        }
        asked.truncate(config.limited(asked.len()));
        let question = |asked: &Asked| {
            let id = asked.image.rsplit_once('.').map_or(asked.image.as_str(), |(stem, _)| stem);
            let question = Question::new(id.into(), images.find(&[&asked.image]), config.prompt(&asked.question));
            Question { category: asked.answer_type.clone(), ..question }
        };
        Ok(Self { questions: asked.iter().map(question).collect(), asked })
    }
}

/// The soft accuracy of an answer.
fn accuracy(answer: &str, given: &[Given]) -> f64 {
    let answer = normalize(&prepare(answer));
    soft_accuracy(&given.iter().map(|given| given.answer == answer).collect::<Vec<_>>())
}

impl Benchmark for VizWiz {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let given = &self.asked[question].answers;
        if given.is_empty() {
            return Mark::default();
        }
        Mark::of_given(given.iter().map(|given| given.answer.as_str()), accuracy(answer, given))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        if self.asked.iter().all(|asked| asked.answers.is_empty()) {
            return Ok(Scores::default());
        }
        let (mut all, mut as_vqa, mut told, mut by_type) = (Vec::new(), Vec::new(), Vec::new(), Means::default());
        for (asked, answer) in self.asked.iter().zip(answers) {
            let accuracy = accuracy(answer, &asked.answers);
            all.push(accuracy);
            as_vqa.push(vqa_accuracy(&prepare(answer), asked.answers.iter().map(|given| given.answer.as_str())));
            by_type.add(&asked.answer_type, accuracy);
            told.push(one_if((normalize(&prepare(answer)) == "unanswerable") == (asked.answerable == 0)));
        }
        let detail = json!({
            "overall": percent(&all), "per_answer_type": by_type.json(),
            // By VQAv2's scorer, which also normalises the annotators' answers.
            "overall_as_vqa": percent(&as_vqa),
            // How often model and annotators agree on whether the question is unanswerable.
            "unanswerable_told": percent(&told),
        });
        let by_type = by_type.figures().map(|(name, figure)| (name.replace('/', "_"), figure));
        let figures = [("accuracy".to_string(), percent(&all))].into_iter().chain(by_type).collect();
        Ok(Scores { figures, detail })
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        let line = |(asked, answer): (&Asked, &String)| json!({"image": asked.image, "answer": prepare(answer)});
        let lines: Value = self.asked.iter().zip(answers).map(line).collect();
        Ok(vec![("upload.json", lines.to_string().into_bytes())])
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{answers_of, config, fixture_text, job, score_of};

    fn parsed(text: &Text) -> Result<VizWiz, StageError> {
        VizWiz::parse(text, &Images::in_folder("val"), &config("vizwiz"))
    }

    /// Expected: the official `vqaEval.py`'s arithmetic, run in Python on the answers that LLaVA's
    /// `convert_vizwiz_for_submission.py` makes from these.
    #[test]
    fn scores_are_the_official_ones() {
        let vizwiz = parsed(&fixture_text("vizwiz/val.json")).unwrap();
        let scores = score_of(&vizwiz, &answers_of(&vizwiz, "vizwiz/answers.jsonl"));
        let figures =
            [("accuracy", 74.56), ("number", 73.08), ("other", 79.11), ("unanswerable", 66.67), ("yes_no", 51.43)];
        assert_eq!(scores.figures, figures.map(|(name, value)| (name.to_string(), value)));
        // The arithmetic of VQAv2's `vqaEval.py` on the same answers.
        assert_eq!(scores.detail["overall_as_vqa"], 75.44);
    }

    #[test]
    fn the_prompt_offers_unanswerable() {
        let vizwiz = parsed(&fixture_text("vizwiz/val.json")).unwrap();
        let prompt = "What is item 0?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n\
                      Answer the question using a single word or phrase.";
        assert_eq!(vizwiz.questions[0].prompt, prompt);
    }

    #[test]
    fn the_test_set_gives_a_file_for_the_server() {
        let text =
            r#"[{"image": "VizWiz_test_1.jpg", "question": "?"}, {"image": "VizWiz_test_2.jpg", "question": "?"}]"#;
        let vizwiz = parsed(&Text { text: text.into(), named: "test.json".into() }).unwrap();
        let answers = ["Unanswerable".to_string(), "The dog's 2,000".to_string()];
        assert_eq!(vizwiz.score(&answers, &job()).unwrap(), Scores::default());
        let upload: Value = serde_json::from_slice(&vizwiz.uploads(&answers).unwrap()[0].1).unwrap();
        let expected = json!([
            {"image": "VizWiz_test_1.jpg", "answer": "unanswerable"},
            {"image": "VizWiz_test_2.jpg", "answer": "dog 's 2000"},
        ]);
        assert_eq!(upload, expected);
    }

    #[test]
    fn missing_answers_and_repeated_questions_are_named() {
        let good = r#"{"image": "a.jpg", "question": "?", "answers": [{"answer": "x"}], "answer_type": "other", "answerable": 1}"#;
        let without = r#"{"image": "b.jpg", "question": "?"}"#;
        for (second, words) in
            [(good, "file: the question id a.jpg occurs twice"), (without, "file: question b.jpg has no answers")]
        {
            let text = Text { text: format!("[{good}, {second}]"), named: "file".into() };
            assert_eq!(parsed(&text).err().unwrap().to_string(), words);
        }
    }
}
