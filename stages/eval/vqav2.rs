//! `VQAv2` (Goyal et al. 2017): open questions with the answers of ten annotators. Scored as the official scorer does
//! on answers prepared as LLaVA prepares them for submission.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    EvalConfig,
    question::{Benchmark, Question, Scores, duplicate, parse, read, twice},
    vqa_text::{normalize, one_line, prepare},
};
use crate::{Job, StageError};

/// The question file.
#[derive(Debug, Deserialize)]
struct QuestionFile {
    /// `val2014` in COCO's names of images.
    #[serde(default)]
    data_subtype: String,
    questions: Vec<Asked>,
}

#[derive(Debug, Deserialize)]
struct Asked {
    question_id: u64,
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
    question_id: u64,
    question_type: String,
    answer_type: String,
    answers: Vec<Given>,
}

#[derive(Debug, Deserialize)]
struct Given {
    answer: String,
}

/// The questions with their annotations, in the same order.
pub(super) struct Vqav2 {
    questions: Vec<Question>,
    annotations: Vec<Annotation>,
}

impl Vqav2 {
    pub(super) fn read(config: &EvalConfig, job: &Job) -> Result<Self, StageError> {
        let data = job.input("data")?;
        let questions = data.join(config.questions.as_deref().unwrap_or("eval/vqav2/questions.json"));
        let annotations = data.join(config.annotations.as_deref().unwrap_or("eval/vqav2/annotations.json"));
        let images = data.join(&config.image_folder);
        Self::parse(
            &read(&questions, "questions", job)?,
            &job.named(&questions),
            &read(&annotations, "annotations", job)?,
            &job.named(&annotations),
            &images,
            config.limit,
        )
    }

    fn parse(
        questions: &str,
        questions_named: &Path,
        annotations: &str,
        annotations_named: &Path,
        images: &Path,
        limit: usize,
    ) -> Result<Self, StageError> {
        let file: QuestionFile = parse(questions, 1, questions_named)?;
        let annotated: AnnotationFile = parse(annotations, 1, annotations_named)?;
        if let Some((_, id)) = duplicate(file.questions.iter().map(|asked| asked.question_id)) {
            return Err(twice(questions_named, id));
        }
        if let Some((_, id)) = duplicate(annotated.annotations.iter().map(|annotation| annotation.question_id)) {
            return Err(twice(annotations_named, id));
        }
        if file.questions.is_empty() {
            return Err(StageError::input(questions_named, "there are no questions", "give the benchmark's own file"));
        }
        let mut by_id: HashMap<u64, Annotation> =
            annotated.annotations.into_iter().map(|annotation| (annotation.question_id, annotation)).collect();
        let kept = if limit == 0 { file.questions.len() } else { limit };
        let mut vqa = Self { questions: Vec::new(), annotations: Vec::new() };
        for asked in file.questions.into_iter().take(kept) {
            let annotation = by_id.remove(&asked.question_id).filter(|annotation| !annotation.answers.is_empty());
            let annotation = annotation.ok_or_else(|| {
                let message = format!("question {} has no answers here", asked.question_id);
                StageError::input(
                    annotations_named,
                    message,
                    "give the annotation file that belongs to the question file",
                )
            })?;
            let image = image_path(images, &file.data_subtype, asked.image_id);
            vqa.questions.push(Question { id: asked.question_id, image, text: asked.question, category: "" });
            vqa.annotations.push(annotation);
        }
        Ok(vqa)
    }

    /// The official figures for answers as they are handed in: percentages with two decimals.
    fn accuracies(&self, answers: impl Iterator<Item = String>) -> Accuracies {
        let mut accuracies = Accuracies::default();
        for (annotation, answer) in self.annotations.iter().zip(answers) {
            let accuracy = soft_accuracy(&answer, &annotation.answers);
            accuracies.all.push(accuracy);
            accuracies.by_question_type.entry(annotation.question_type.clone()).or_default().push(accuracy);
            accuracies.by_answer_type.entry(annotation.answer_type.clone()).or_default().push(accuracy);
        }
        accuracies
    }
}

#[derive(Default)]
struct Accuracies {
    all: Vec<f64>,
    by_question_type: BTreeMap<String, Vec<f64>>,
    by_answer_type: BTreeMap<String, Vec<f64>>,
}

/// Where the image lies: under COCO's 2014 name, or under its number alone as in COCO 2017.
fn image_path(folder: &Path, subtype: &str, id: u64) -> PathBuf {
    let names = [format!("COCO_{subtype}_{id:012}.jpg"), format!("{id:012}.jpg"), format!("{id:012}.png")];
    let expected = if subtype.contains("201") { &names[0] } else { &names[2] };
    let found = names.iter().find(|name| folder.join(name).is_file());
    folder.join(found.unwrap_or(expected))
}

/// An answer is right by a third for each of the other nine annotators that gave it, at most wholly; the mean of that
/// over leaving out each of the ten. All are normalised first, but only if the ten are not of one mind.
fn soft_accuracy(answer: &str, given: &[Given]) -> f64 {
    let differ = given.iter().any(|other| other.answer != given[0].answer);
    let normal = |text: &str| if differ { normalize(text) } else { one_line(text) };
    let answer = normal(answer);
    let equal: Vec<bool> = given.iter().map(|other| normal(&other.answer) == answer).collect();
    let all = equal.iter().filter(|equal| **equal).count();
    let sum: f64 = equal.iter().map(|own| ((all - usize::from(*own)) as f64 / 3.0).min(1.0)).sum();
    sum / given.len() as f64
}

/// A mean in percent with two decimals, rounded as Python's `round`.
fn percent(accuracies: &[f64]) -> f64 {
    let mean = 100.0 * accuracies.iter().sum::<f64>() / accuracies.len().max(1) as f64;
    format!("{mean:.2}").parse().unwrap_or(mean)
}

impl Benchmark for Vqav2 {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn score(&self, answers: &[String]) -> Scores {
        let scores = self.accuracies(answers.iter().map(|answer| prepare(answer)));
        let mut figures = vec![("accuracy".into(), percent(&scores.all))];
        let names = scores.by_answer_type.iter().map(|(name, list)| (name.replace('/', "_"), percent(list)));
        figures.extend(names);
        let raw = self.accuracies(answers.iter().cloned());
        let table = |lists: &BTreeMap<String, Vec<f64>>| -> Value {
            lists
                .iter()
                .map(|(name, list)| (name.clone(), json!(percent(list))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let detail = json!({
            "overall": percent(&scores.all), "per_question_type": table(&scores.by_question_type),
            "per_answer_type": table(&scores.by_answer_type),
            // Without LLaVA's preparation, which lower-cases answers even where the annotators agree.
            "overall_unprepared": percent(&raw.all),
        });
        Scores { figures, detail }
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;
    use crate::eval::tests::fixture;

    fn text(name: &str) -> String {
        std::fs::read_to_string(fixture("vqav2").join(name)).unwrap()
    }

    fn fixture_set() -> Vqav2 {
        let questions = text("v2_OpenEnded_mscoco_val2014_questions.json");
        let annotations = text("v2_mscoco_val2014_annotations.json");
        let (questions_name, annotations_name) = (Path::new("questions"), Path::new("annotations"));
        Vqav2::parse(&questions, questions_name, &annotations, annotations_name, Path::new("images"), 0).unwrap()
    }

    fn results(vqa: &Vqav2, name: &str) -> Vec<String> {
        let lines: Vec<Value> = serde_json::from_str(&text(name)).unwrap();
        let by_id: HashMap<u64, String> = lines
            .iter()
            .map(|line| (line["question_id"].as_u64().unwrap(), line["answer"].as_str().unwrap().to_string()))
            .collect();
        vqa.questions.iter().map(|question| by_id[&question.id].clone()).collect()
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
                    assert_eq!(percent(&lists[name]), value.as_f64().unwrap(), "{key} {name}");
                }
            }
            for (question, accuracy) in vqa.questions.iter().zip(&scores.all) {
                let value = expected["per_question"][question.id.to_string()].as_f64().unwrap();
                assert_eq!(percent(&[*accuracy]), value, "{key} {}", question.id);
            }
        }
    }

    #[test]
    fn the_stage_prepares_answers_as_llava_does() {
        let vqa = fixture_set();
        let scores = vqa.score(&results(&vqa, "results_raw.json"));
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
            (&two, none, "questions: the question id 1 is there twice"),
            (r#"{"questions": []}"#, none, "questions: there are no questions"),
            ("{\n\"questions\": 3}", none, "questions:2: invalid type"),
            (one, "{", "annotations:1: EOF"),
        ] {
            let names = (Path::new("questions"), Path::new("annotations"));
            let error = Vqav2::parse(questions, names.0, annotations, names.1, Path::new(""), 0).err().unwrap();
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }

    #[test]
    fn images_have_coco_names_or_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let name =
            |subtype: &str| image_path(folder.path(), subtype, 7).file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(name("val2014"), "COCO_val2014_000000000007.jpg");
        assert_eq!(name("shapes"), "000000000007.png");
        std::fs::write(folder.path().join("000000000007.jpg"), "").unwrap();
        assert_eq!(name("val2014"), "000000000007.jpg");
    }
}
