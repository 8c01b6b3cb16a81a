//! MME (Fu et al. 2023, arXiv 2306.13394): two questions per image, one with the answer yes and one with no. Scored like the
//! official `calculation.py`: a task's score is the percentage of right answers plus the percentage of images with both
//! answers right; perception is the sum over ten tasks, cognition the sum over four. Independent of other benchmarks.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};

use super::{
    files::{Files, Text},
    means::one_if,
    question::{Benchmark, Image, Mark, Question, Scores},
};
use crate::{Job, StageError};

const PERCEPTION: [&str; 10] =
    ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"];
const COGNITION: [&str; 4] = ["commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"];
/// Follows each question in the files; LLaVA asks for a short answer instead.
const YES_OR_NO: &str = "Please answer yes or no.";

/// The questions, two per image.
pub(super) struct Mme {
    questions: Vec<Question>,
    /// Whether the right answer is yes.
    labels: Vec<bool>,
}

impl Mme {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let usual = ["MME_Benchmark_release_version/MME_Benchmark", ".", "MME_Benchmark_release_version"];
        let root = files.question_folder(&usual, PERCEPTION[0])?;
        let mut mme = Self { questions: Vec::new(), labels: Vec::new() };
        for task in PERCEPTION.iter().chain(&COGNITION) {
            mme.add_task(task, &root.join(task), files)?;
        }
        Ok(mme)
    }

    /// Adds a task. Its folder has texts and images side by side, or in separate folders.
    fn add_task(&mut self, task: &str, folder: &Path, files: &Files<'_>) -> Result<(), StageError> {
        let separate = folder.join("questions_answers_YN").is_dir();
        let texts = if separate { folder.join("questions_answers_YN") } else { folder.into() };
        let within = if separate { "images/" } else { "" };
        let names = names(&texts)?;
        let stems: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".txt")).collect();
        if stems.is_empty() {
            let help = "give the benchmark's own folder with all of its 14 tasks";
            return Err(StageError::input(files.named(&texts), format!("the task {task} has no questions"), help));
        }
        let limit = files.config.limited(stems.len());
        // A missing folder has no images; they are reported as missing later.
        let images = self::names(&folder.join(within)).unwrap_or_default();
        for stem in stems.into_iter().take(limit) {
            let text = files.read(&texts.join(format!("{stem}.txt")))?;
            let image = ["jpg", "png", "jpeg"].map(|ending| format!("{stem}.{ending}"));
            let image = image.iter().find(|name| images.contains(*name)).unwrap_or(&image[0]);
            for (question, label) in pair(&text)? {
                let words = question.replace(YES_OR_NO, "");
                self.questions.push(Question {
                    id: format!("{task}/{within}{image}").as_str().into(),
                    image: Some(Image::File(folder.join(format!("{within}{image}")))),
                    prompt: files.config.prompt(words.trim()),
                    category: task.into(),
                });
                self.labels.push(label);
            }
        }
        Ok(())
    }

    /// The sum of the tasks' scores, and the score of each.
    fn score_tasks(&self, tasks: &[&str], answers: &[String]) -> (f64, Vec<(String, Value)>) {
        let mut sum = 0.0;
        let mut scores = Vec::new();
        for task in tasks {
            let all = self.questions.iter().zip(&self.labels).zip(answers);
            let right: Vec<bool> = all
                .filter(|((question, _), _)| question.category == *task)
                .map(|((_, label), answer)| yes_or_no(answer) == Some(*label))
                .collect();
            let pairs = right.chunks(2).filter(|pair| pair.iter().all(|right| *right)).count();
            let accuracy = right.iter().filter(|right| **right).count() as f64 / right.len() as f64;
            let accuracy_plus = pairs as f64 / (right.len() / 2) as f64;
            let score = accuracy * 100.0 + accuracy_plus * 100.0;
            sum += score;
            let detail = json!({"score": score, "accuracy": accuracy, "accuracy_plus": accuracy_plus});
            scores.push(((*task).to_string(), detail));
        }
        (sum, scores)
    }
}

/// The sorted names of the files in a folder.
fn names(folder: &Path) -> Result<BTreeSet<String>, StageError> {
    let entries = fs::read_dir(folder).map_err(StageError::io(folder))?;
    entries.map(|entry| Ok(entry.map_err(StageError::io(folder))?.file_name().to_string_lossy().into_owned())).collect()
}

/// Parses the two questions about an image, each on a line with its answer after a tab.
fn pair(text: &Text) -> Result<Vec<(String, bool)>, StageError> {
    let line = |(line, number): (&str, usize)| {
        let wrong = || text.error("expected a question, a tab, and `Yes` or `No`").at_line(number);
        let (question, answer) = line.trim().split_once('\t').ok_or_else(wrong)?;
        match answer.trim().to_lowercase().as_str() {
            "yes" => Ok((question.to_string(), true)),
            "no" => Ok((question.to_string(), false)),
            _ => Err(wrong()),
        }
    };
    let lines = text.text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    let pair = lines.map(line).collect::<Result<Vec<_>, _>>()?;
    if pair.len() == 2 { Ok(pair) } else { Err(text.error(format!("expected 2 questions, found {}", pair.len()))) }
}

/// Reads an answer by its first four characters. `None`, neither yes nor no, counts as wrong.
fn yes_or_no(answer: &str) -> Option<bool> {
    let beginning: String = answer.to_lowercase().chars().take(4).collect();
    if beginning.contains("yes") {
        Some(true)
    } else if beginning.contains("no") {
        Some(false)
    } else {
        None
    }
}

impl Benchmark for Mme {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn mark(&self, question: usize, answer: &str) -> Mark {
        let label = self.labels[question];
        Mark::new(if label { "yes" } else { "no" }, one_if(yes_or_no(answer) == Some(label)))
    }

    fn score(&self, answers: &[String], _job: &Job) -> Result<Scores, StageError> {
        let (perception, mut tasks) = self.score_tasks(&PERCEPTION, answers);
        let (cognition, more) = self.score_tasks(&COGNITION, answers);
        tasks.extend(more);
        let figures = vec![("perception".into(), perception), ("cognition".into(), cognition)];
        let detail = json!({"perception": perception, "cognition": cognition, "tasks": tasks.into_iter().collect::<serde_json::Map<_, _>>()});
        Ok(Scores { figures, detail })
    }
}

#[cfg(test)]
mod tests {
    // Figures must equal the official ones digit for digit.
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use tempfile::TempDir;

    use super::*;
    use crate::{
        eval::tests::{answers_of, config, fixture, fixture_text, score_of},
        testing::{Trial, tree},
    };

    /// The fixture, with empty files in place of its images.
    fn with_images() -> (TempDir, Mme) {
        let root = tempfile::tempdir().unwrap();
        let release = "MME_Benchmark_release_version";
        for (path, content) in tree(&fixture("mme").join(release)) {
            let path = root.path().join(release).join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        for (_, line) in fixture_text("mme/llava_mme.jsonl").json_lines::<Value>().unwrap() {
            let path = root.path().join(release).join(line["image"].as_str().unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let (config, job) = (config("mme"), Trial::new(Path::new("work"), &[("data", root.path())]).job());
        let mme = Mme::read(&Files::new(&config, &job)).unwrap();
        (root, mme)
    }

    /// Expected: the official `calculation.py`'s arithmetic, run in Python on these files.
    #[test]
    fn scores_are_the_official_ones() {
        let (_root, mme) = with_images();
        assert_eq!(mme.questions.len(), 140);
        let scores = score_of(&mme, &answers_of(&mme, "mme/answers.jsonl"));
        assert_eq!(scores.figures, [("perception".to_string(), 1250.0), ("cognition".to_string(), 470.0)]);
        let tasks = &scores.detail["tasks"];
        assert_eq!(tasks["existence"], json!({"score": 100.0, "accuracy": 0.6, "accuracy_plus": 0.4}));
        assert_eq!(tasks["code_reasoning"]["score"], 100.0);
        assert_eq!(tasks["text_translation"]["score"], 70.0);
    }

    #[test]
    fn prompts_equal_llavas() {
        let (_root, mme) = with_images();
        let lines: Vec<(usize, Value)> = fixture_text("mme/llava_mme.jsonl").json_lines().unwrap();
        for question in &mme.questions {
            let same =
                |(_, line): &(usize, Value)| line["image"] == json!(question.id) && line["text"] == question.prompt;
            assert!(lines.iter().any(same), "{question:?}");
        }
    }

    #[test]
    fn the_first_four_characters_decide() {
        for (answer, expected) in [
            ("Yes, it is", Some(true)),
            ("no", Some(false)),
            ("Not at all", Some(false)),
            ("It is not", None),
            (" yes", Some(true)),
            ("", None),
        ] {
            assert_eq!(yes_or_no(answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn images_are_beside_the_texts_or_in_a_separate_folder() {
        let root = tempfile::tempdir().unwrap();
        for (folder, texts, images) in [("posters", "questions_answers_YN", "images"), ("count", "", "")] {
            for below in [texts, images] {
                fs::create_dir_all(root.path().join(folder).join(below)).unwrap();
            }
            fs::write(root.path().join(folder).join(texts).join("1.txt"), "A?\tYes\nB?\tNo\n").unwrap();
            fs::write(root.path().join(folder).join(images).join("1.png"), "").unwrap();
        }
        let (config, job) = (config("mme"), Trial::new(Path::new("work"), &[("data", root.path())]).job());
        let files = Files::new(&config, &job);
        let mut mme = Mme { questions: Vec::new(), labels: Vec::new() };
        for (task, image) in [("posters", "images/1.png"), ("count", "1.png")] {
            let folder = root.path().join(task);
            mme.add_task(task, &folder, &files).unwrap();
            let question = mme.questions.last().unwrap();
            assert_eq!(question.image, Some(Image::File(folder.join(image))));
            assert_eq!(question.id.to_string(), format!("{task}/{image}"));
        }
        fs::write(root.path().join("count/1.txt"), "A?\tYes\nB? No\n").unwrap();
        let error = mme.add_task("count", &root.path().join("count"), &files).unwrap_err();
        assert!(error.to_string().contains("shown/data/count/1.txt:2: "), "{error}");
    }
}
