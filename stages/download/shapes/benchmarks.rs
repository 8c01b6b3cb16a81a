//! Writes the evaluation scenes in the file formats of POPE and `VQAv2`. Independent of how they are scored.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    dice::Dice,
    scene::{Kind, Scene},
    text,
};

/// File name of image `number`, in COCO's style.
pub(super) fn image_name(number: usize) -> String {
    format!("{number:012}.png")
}

/// How POPE selects the absent objects of its negative questions (Li et al. 2023, arXiv 2305.10355, section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Negatives {
    /// At random.
    Random,
    /// The most frequent ones of the data set.
    Popular,
    /// The ones that occur most often together with the objects in the image.
    Adversarial,
}

impl Negatives {
    pub(super) const ALL: [Self; 3] = [Self::Random, Self::Popular, Self::Adversarial];

    pub(super) fn name(self) -> &'static str {
        ["random", "popular", "adversarial"][self as usize]
    }
}

/// How many images show each kind, and each pair of kinds.
struct Statistics {
    alone: BTreeMap<Kind, usize>,
    together: BTreeMap<(Kind, Kind), usize>,
}

impl Statistics {
    fn of(scenes: &[Scene]) -> Self {
        let mut statistics = Self { alone: BTreeMap::new(), together: BTreeMap::new() };
        for kinds in scenes.iter().map(Scene::kinds) {
            for first in &kinds {
                *statistics.alone.entry(*first).or_default() += 1;
                for second in kinds.iter().filter(|second| *second != first) {
                    *statistics.together.entry((*first, *second)).or_default() += 1;
                }
            }
        }
        statistics
    }

    fn together_with(&self, kind: Kind, present: &[Kind]) -> usize {
        present.iter().map(|other| self.together.get(&(*other, kind)).copied().unwrap_or_default()).sum()
    }
}

/// A POPE file in JSON lines. Each image gets as many questions about absent kinds as about present ones.
pub(super) fn pope(scenes: &[Scene], negatives: Negatives, seed: u64) -> String {
    let statistics = Statistics::of(scenes);
    let mut lines = String::new();
    let mut question_id = 0;
    for (number, scene) in scenes.iter().enumerate() {
        let mut dice = Dice::new(seed, 100 + negatives as u64, number);
        let present = scene.kinds();
        // Shuffled before the stable sort, so that ties are broken at random and not alphabetically.
        let mut absent = dice.shuffled(Kind::all().filter(|kind| !scene.has(*kind)));
        absent.sort_by_key(|kind| {
            std::cmp::Reverse(match negatives {
                Negatives::Random => 0,
                Negatives::Popular => statistics.alone.get(kind).copied().unwrap_or_default(),
                Negatives::Adversarial => statistics.together_with(*kind, &present),
            })
        });
        for (yes, no) in present.iter().zip(absent) {
            for (kind, label) in [(*yes, "yes"), (no, "no")] {
                question_id += 1;
                let line = json!({
                    "question_id": question_id, "image": image_name(number), "text": text::presence(kind), "label": label,
                });
                lines += &line.to_string();
                lines.push('\n');
            }
        }
    }
    lines
}

/// The questions and annotations in `VQAv2`'s format: one question of each type per image, ten annotators who agree.
pub(super) fn vqav2(scenes: &[Scene], seed: u64) -> (Value, Value) {
    let (mut questions, mut annotations) = (Vec::new(), Vec::new());
    for (number, scene) in scenes.iter().enumerate() {
        let mut dice = Dice::new(seed, 200, number);
        let mut asked = vec![
            text::about_colour(scene, &mut dice),
            text::about_shape(scene, &mut dice),
            text::about_number(scene),
            text::about_presence(scene, &mut dice),
        ];
        asked.extend(text::about_position(scene, &mut dice));
        for (index, question) in asked.into_iter().enumerate() {
            let question_id = number * 1000 + index;
            let answer = question.answer.to_lowercase();
            let answers: Vec<Value> = (1..=10)
                .map(|annotator| json!({"answer": answer, "answer_confidence": "yes", "answer_id": annotator}))
                .collect();
            questions.push(json!({"image_id": number, "question": question.text, "question_id": question_id}));
            annotations.push(json!({
                "question_type": question.category, "multiple_choice_answer": answer, "answers": answers,
                "image_id": number, "answer_type": answer_type(&answer), "question_id": question_id,
            }));
        }
    }
    let head = json!({"info": {"description": "drawn shapes, VQA v2 format"}, "license": {"url": "", "name": ""},
        "data_subtype": "shapes", "data_type": "shapes"});
    let (mut question_file, mut annotation_file) = (head.clone(), head);
    question_file["task_type"] = json!("Open-Ended");
    question_file["questions"] = Value::Array(questions);
    annotation_file["annotations"] = Value::Array(annotations);
    (question_file, annotation_file)
}

fn answer_type(answer: &str) -> &'static str {
    match answer {
        "yes" | "no" => "yes/no",
        "1" | "2" | "3" => "number",
        _ => "other",
    }
}
