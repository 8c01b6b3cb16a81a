//! `VQAv2` (Goyal et al. 2017): open questions with the answers of ten annotators. Scored like the official scorer on
//! answers prepared like LLaVA's submissions. Answers to the test set are not public; for its questions, writes a file for
//! the server. Independent of other benchmarks.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    means::{Means, percent},
    question::{Benchmark, Id, Mark, Question, Scores, duplicate, duplicate_id, whole},
    vqa_text::{prepare, vqa_accuracy},
};
use crate::{Job, StageError};

/// The question file.
#[derive(Debug, Deserialize)]
struct QuestionFile {
    /// The set in COCO's image names, such as `val2014`.
    #[serde(default)]
    data_subtype: String,
    questions: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(deserialize_with = "whole")]
    question_id: u64,
    #[serde(deserialize_with = "whole")]
    image_id: u64,
    question: String,
}

/// The annotation file.
#[derive(Debug, Deserialize)]
struct AnnotationFile {
    annotations: Vec<Annotation>,
}

#[derive(Debug, Deserialize)]
struct Annotation {
    #[serde(deserialize_with = "whole")]
    question_id: u64,
    question_type: String,
    answer_type: String,
    answers: Vec<Given>,
}

#[derive(Debug, Deserialize)]
struct Given {
    answer: String,
}

/// The questions, and their annotations in the same order.
pub(super) struct Vqav2 {
    questions: Vec<Question>,
    /// Empty for the test set.
    annotations: Vec<Annotation>,
    /// The ids for which the server expects answers: the whole test set, even for test-dev, a part of it.
    expected: Vec<u64>,
}

impl Vqav2 {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let usual = ["eval/vqav2/questions.json", "v2_OpenEnded_mscoco_val2014_questions.json"];
        let text = files.questions(&usual)?;
        let file: QuestionFile = text.json()?;
        let images = files.images(&["eval/images", "test2015", "val2014", "."]);
        let annotations = if file.data_subtype.starts_with("test") {
            None
        } else {
            let usual = ["eval/vqav2/annotations.json", "v2_mscoco_val2014_annotations.json"];
            Some(files.annotations(&usual)?)
        };
        let all = files.optional(&["v2_OpenEnded_mscoco_test2015_questions.json"])?;
        let all = if annotations.is_none() { all } else { None };
        Self::parse(&file, &text, annotations.as_ref(), all.as_ref(), &images, files.config)
    }

    fn parse(
        file: &QuestionFile,
        text: &Text,
        annotations: Option<&Text>,
        all: Option<&Text>,
        images: &Images,
        config: &EvalConfig,
    ) -> Result<Self, StageError> {
        if let Some((_, id)) = duplicate(file.questions.iter().map(|asked| asked.question_id)) {
            return Err(duplicate_id(&text.named, id));
        }
        if file.questions.is_empty() {
            return Err(text.error("there are no questions"));
        }
        let count = config.limited(file.questions.len());
        let asked = &file.questions[..count];
        let expected = match all {
            Some(all) => all.json::<QuestionFile>()?.questions.iter().map(|question| question.question_id).collect(),
            None => asked.iter().map(|question| question.question_id).collect(),
        };
        let annotations = annotations.map(|text| annotations_of(asked, text)).transpose()?.unwrap_or_default();
        let question = |(index, asked): (usize, &Asked)| {
            let image = image_path(images, &file.data_subtype, asked.image_id);
            let category = annotations.get(index).map_or("", |annotation| &annotation.answer_type).into();
            let question = Question::new(Id::Number(asked.question_id), image, config.prompt(&asked.question));
            Question { category, ..question }
        };
        let questions = asked.iter().enumerate().map(question).collect();
        Ok(Self { questions, annotations, expected })
    }

    /// The official figures for submitted answers.
    fn accuracies(&self, answers: impl Iterator<Item = String>) -> Accuracies {
        let mut accuracies = Accuracies::default();
        for (annotation, answer) in self.annotations.iter().zip(answers) {
            let accuracy = vqa_accuracy(&answer, annotation.answers.iter().map(|given| given.answer.as_str()));
            accuracies.all.push(accuracy);
            accuracies.by_question_type.add(&annotation.question_type, accuracy);
            accuracies.by_answer_type.add(&annotation.answer_type, accuracy);
        }
        accuracies
    }
}

/// The annotations of the questions, in their order.
fn annotations_of(asked: &[Asked], text: &Text) -> Result<Vec<Annotation>, StageError> {
    let file: AnnotationFile = text.json()?;
    if let Some((_, id)) = duplicate(file.annotations.iter().map(|annotation| annotation.question_id)) {
        return Err(duplicate_id(&text.named, id));
    }
    let mut by_id: HashMap<u64, Annotation> =
        file.annotations.into_iter().map(|annotation| (annotation.question_id, annotation)).collect();
    let annotation = |asked: &Asked| {
        let found = by_id.remove(&asked.question_id).filter(|annotation| !annotation.answers.is_empty());
        found.ok_or_else(|| {
            let message = format!("question {} has no answers here", asked.question_id);
            let help = "give the annotation file of the same set as the question file";
            StageError::input(&text.named, message, help)
        })
    };
    asked.iter().map(annotation).collect()
}

#[derive(Default)]
struct Accuracies {
    all: Vec<f64>,
    by_question_type: Means,
    by_answer_type: Means,
}

/// The path of an image, which has COCO's 2014 name, or only a number, as in COCO 2017.
fn image_path(images: &Images, subtype: &str, id: u64) -> std::path::PathBuf {
    // Questions of test-dev2015 are about images of test2015.
    let subtype = subtype.replace("test-dev", "test");
    let number = format!("{id:012}");
    let names = [format!("COCO_{subtype}_{number}.jpg"), format!("{number}.jpg"), format!("{number}.png")];
    let mut names = names.each_ref().map(String::as_str);
    if !subtype.contains("201") {
        names.reverse();
    }
    images.find(&names)
}

impl Benchmark for Vqav2 {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let Some(annotation) = self.annotations.get(question) else { return Mark::default() };
        let given = || annotation.answers.iter().map(|given| given.answer.as_str());
        Mark::of_given(given(), vqa_accuracy(&prepare(answer), given()))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        if self.annotations.is_empty() {
            return Ok(Scores::default());
        }
        let scores = self.accuracies(answers.iter().map(|answer| prepare(answer)));
        let mut figures = vec![("accuracy".into(), percent(&scores.all))];
        figures.extend(scores.by_answer_type.figures().map(|(name, figure)| (name.replace('/', "_"), figure)));
        let raw = self.accuracies(answers.iter().cloned());
        let detail = json!({
            "overall": percent(&scores.all), "per_question_type": scores.by_question_type.json(),
            "per_answer_type": scores.by_answer_type.json(),
            // Without LLaVA's preparation, which changes answers to lower case even if the annotators agree.
            "overall_unprepared": percent(&raw.all),
        });
        Ok(Scores { figures, detail })
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        if !self.annotations.is_empty() {
            return Ok(Vec::new());
        }
        let given: HashMap<&Id, &String> = self.questions.iter().map(|question| &question.id).zip(answers).collect();
        let answer = |id: &u64| given.get(&Id::Number(*id)).map(|answer| prepare(answer)).unwrap_or_default();
        let lines: Vec<Value> =
            self.expected.iter().map(|id| json!({"question_id": id, "answer": answer(id)})).collect();
        Ok(vec![("upload.json", Value::Array(lines).to_string().into_bytes())])
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::{config, fixture, job, score_of};

    fn text(name: &str) -> String {
        std::fs::read_to_string(fixture("vqav2").join(name)).unwrap()
    }

    fn named(name: &str, text: &str) -> Text {
        Text { text: text.into(), named: name.into() }
    }

    fn parsed(questions: &str, annotations: Option<&str>, all: Option<&str>) -> Result<Vqav2, StageError> {
        let questions = named("questions", questions);
        let file = questions.json()?;
        let annotations = annotations.map(|text| named("annotations", text));
        let all = all.map(|text| named("all", text));
        let images = Images::in_folder("images");
        Vqav2::parse(&file, &questions, annotations.as_ref(), all.as_ref(), &images, &config("vqav2"))
    }

    fn fixture_set() -> Vqav2 {
        let questions = text("v2_OpenEnded_mscoco_val2014_questions.json");
        let annotations = text("v2_mscoco_val2014_annotations.json");
        parsed(&questions, Some(&annotations), None).unwrap()
    }

    fn number(question: &Question) -> u64 {
        let Id::Number(number) = question.id else { panic!("{question:?}") };
        number
    }

    fn results(vqa: &Vqav2, name: &str) -> Vec<String> {
        let lines: Vec<Value> = serde_json::from_str(&text(name)).unwrap();
        let by_id: HashMap<u64, String> = lines
            .iter()
            .map(|line| (line["question_id"].as_u64().unwrap(), line["answer"].as_str().unwrap().to_string()))
            .collect();
        vqa.questions.iter().map(|question| by_id[&number(question)].clone()).collect()
    }

    #[test]
    fn scores_are_the_official_ones_digit_for_digit() {
        let vqa = fixture_set();
        let expected: Value = serde_json::from_str(&text("expected.json")).unwrap();
        for (key, file) in [("raw", "results_raw.json"), ("llava_processed", "results_llava_processed.json")] {
            let expected = &expected[key];
            let answers = results(&vqa, file);
            let scores = vqa.accuracies(answers.iter().cloned());
            assert_eq!(percent(&scores.all), expected["accuracy"]["overall"].as_f64().unwrap(), "{key}");
            for (table, lists) in
                [("perQuestionType", &scores.by_question_type), ("perAnswerType", &scores.by_answer_type)]
            {
                for (name, value) in expected["accuracy"][table].as_object().unwrap() {
                    assert_eq!(lists.figure(name), value.as_f64().unwrap(), "{key} {name}");
                }
            }
            assert_eq!(vqa.questions.len(), scores.all.len());
            for (question, accuracy) in vqa.questions.iter().zip(&scores.all) {
                let value = expected["per_question"][number(question).to_string()].as_f64().unwrap();
                assert_eq!(percent(&[*accuracy]), value, "{key} {}", number(question));
            }
        }
    }

    #[test]
    fn the_stage_prepares_answers_like_llava() {
        let vqa = fixture_set();
        let scores = score_of(&vqa, &results(&vqa, "results_raw.json"));
        assert_eq!(scores.figures[0], ("accuracy".to_string(), 75.85));
        assert_eq!(scores.detail["overall_unprepared"], 74.31);
    }

    #[test]
    fn the_files_must_belong_together() {
        let one = r#"{"questions": [{"question_id": 1, "image_id": 2, "question": "?"}]}"#;
        let two = one.replace("}]", r#"}, {"question_id": 1, "image_id": 2, "question": "?"}]"#);
        let none = r#"{"annotations": []}"#;
        for (questions, annotations, words) in [
            (one, none, "annotations: question 1 has no answers here"),
            (&two, none, "questions: the question id 1 occurs twice"),
            (r#"{"questions": []}"#, none, "questions: there are no questions"),
            ("{\n\"questions\": 3}", none, "questions:2: there is the number `3` where a list must be"),
            (one, "{", "annotations:1: the text ends too early"),
        ] {
            let error = parsed(questions, Some(annotations), None).err().unwrap();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn images_have_coco_names_or_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let images = Images::in_folder(folder.path());
        let name = |subtype: &str| image_path(&images, subtype, 7).file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name("val2014"), "COCO_val2014_000000000007.jpg");
        assert_eq!(name("test-dev2015"), "COCO_test2015_000000000007.jpg");
        assert_eq!(name("shapes"), "000000000007.png");
        std::fs::write(folder.path().join("000000000007.jpg"), "").unwrap();
        assert_eq!(name("val2014"), "000000000007.jpg");
    }

    /// Expected: the file that LLaVA's `convert_vqav2_for_submission.py` makes from answers with one missing.
    #[test]
    fn the_test_set_gives_a_file_for_the_server() {
        let all = text("v2_OpenEnded_mscoco_val2014_questions.json");
        let mut asked: Value = serde_json::from_str(&all).unwrap();
        asked["questions"].as_array_mut().unwrap().retain(|question| question["question_id"] != 100_006);
        let vqa = parsed(&asked.to_string(), None, Some(&all)).unwrap();
        let lines = text("merge.jsonl");
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let answers: HashMap<u64, String> = lines
            .map(|line| (line["question_id"].as_u64().unwrap(), line["text"].as_str().unwrap().to_string()))
            .collect();
        let answers: Vec<String> = vqa.questions.iter().map(|question| answers[&number(question)].clone()).collect();
        let uploads = vqa.uploads(&answers).unwrap();
        let upload: Value = serde_json::from_slice(&uploads[0].1).unwrap();
        let expected: Value = serde_json::from_str(&text("expected_submission_missing.json")).unwrap();
        assert_eq!(upload, expected);
        assert_eq!(vqa.score(&answers, &job()).unwrap(), Scores::default());
    }
}
