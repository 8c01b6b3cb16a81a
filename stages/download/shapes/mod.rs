//! `builtin:shapes`: a generated data set of coloured shapes, in the formats of LLaVA-1.5, POPE and `VQAv2`. It needs no
//! network, and its answers can't be guessed without the image. Independent of what models are trained on it.
//!
//! ```text
//! images/, pretrain.json, instruct.json, counting.json      training: captions, questions, a second task
//! eval/images/, eval/pope/coco_pope_*.json, eval/vqav2/*.json   scenes that training never sees (see `scene.rs`)
//! ```

mod benchmarks;
mod dice;
mod draw;
mod scene;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use self::{
    benchmarks::{Negatives, image_name},
    dice::Dice,
    scene::Scene,
    text::{CAPTION_REQUESTS, Question},
};
use crate::{Job, StageError, contract::event::Progress, text::conversation::SHORT_ANSWER};

/// Images drawn between two checks for cancellation.
const CHUNK: usize = 64;

/// The streams of [`Dice`], one per purpose.
mod purpose {
    pub(super) const TRAINING_SCENES: u64 = 1;
    pub(super) const EVALUATION_SCENES: u64 = 2;
    pub(super) const TRAINING_PIXELS: u64 = 3;
    pub(super) const EVALUATION_PIXELS: u64 = 4;
    pub(super) const CAPTIONS: u64 = 5;
    pub(super) const FIRST_MIX: u64 = 6;
    pub(super) const SECOND_MIX: u64 = 7;
}

/// Writes the data set into the output folder.
pub(super) fn write(job: &Job, images: usize, eval_images: usize) -> Result<(), StageError> {
    let (seed, out) = (job.seed(), job.output());
    let training = training_scenes(seed, images);
    let evaluation: Vec<Scene> = (0..eval_images)
        .map(|number| Scene::evaluation(number, &mut Dice::new(seed, purpose::EVALUATION_SCENES, number)))
        .collect();
    let total = images + eval_images;
    let drawn = |done: usize| job.progress(Progress::new(done, total, "images"));
    draw_all(job, &training, purpose::TRAINING_PIXELS, &out.join("images"), drawn)?;
    draw_all(job, &evaluation, purpose::EVALUATION_PIXELS, &out.join("eval/images"), |done| drawn(images + done))?;
    for (name, records) in annotation_files(seed, &training) {
        write_json(&out.join(name), &Value::Array(records))?;
    }
    for negatives in Negatives::ALL {
        let name = format!("eval/pope/coco_pope_{}.json", negatives.name());
        write_text(&out.join(name), &benchmarks::pope(&evaluation, negatives, seed))?;
    }
    let (questions, annotations) = benchmarks::vqav2(&evaluation, seed);
    write_json(&out.join("eval/vqav2/questions.json"), &questions)?;
    write_json(&out.join("eval/vqav2/annotations.json"), &annotations)?;
    job.result("images", images as f64);
    job.result("eval_images", eval_images as f64);
    Ok(())
}

fn training_scenes(seed: u64, images: usize) -> Vec<Scene> {
    (0..images).map(|number| Scene::training(&mut Dice::new(seed, purpose::TRAINING_SCENES, number))).collect()
}

/// The three training files, each with one record per image.
fn annotation_files(seed: u64, scenes: &[Scene]) -> [(&'static str, Vec<Value>); 3] {
    let records = |make: &dyn Fn(usize, &Scene) -> Value| scenes.iter().enumerate().map(|(n, s)| make(n, s)).collect();
    let mix = |stream: u64, mix: fn(&Scene, &mut Dice) -> Vec<Question>| {
        records(&|number, scene| conversation(number, &mix(scene, &mut Dice::new(seed, stream, number))))
    };
    [
        ("pretrain.json", records(&|number, scene| caption(number, scene, seed))),
        ("instruct.json", mix(purpose::FIRST_MIX, text::first_mix)),
        ("counting.json", mix(purpose::SECOND_MIX, text::second_mix)),
    ]
}

/// A record in the format of LLaVA-1.5's pretraining data.
fn caption(number: usize, scene: &Scene, seed: u64) -> Value {
    let mut dice = Dice::new(seed, purpose::CAPTIONS, number);
    let request = dice.pick(&CAPTION_REQUESTS);
    let request = if dice.coin() { format!("<image>\n{request}") } else { format!("{request}\n<image>") };
    record(number, vec![("human", request), ("gpt", text::caption(scene))])
}

/// A record in the format of LLaVA-1.5's instruction data: only the first question ends with the request for a short
/// answer.
fn conversation(number: usize, questions: &[Question]) -> Value {
    let turns = questions.iter().enumerate().flat_map(|(index, question)| {
        let text = match index {
            0 => format!("<image>\n{}{SHORT_ANSWER}", question.text),
            _ => question.text.clone(),
        };
        [("human", text), ("gpt", question.answer.clone())]
    });
    record(number, turns.collect())
}

fn record(number: usize, turns: Vec<(&str, String)>) -> Value {
    let turns: Vec<Value> = turns.into_iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
    json!({"id": format!("{number:012}"), "image": image_name(number), "conversations": turns})
}

fn draw_all(job: &Job, scenes: &[Scene], stream: u64, folder: &Path, drawn: impl Fn(usize)) -> Result<(), StageError> {
    std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
    for (chunk, scenes) in scenes.chunks(CHUNK).enumerate() {
        job.check_cancelled()?;
        scenes.par_iter().enumerate().try_for_each(|(index, scene)| {
            let number = chunk * CHUNK + index;
            let image = draw::draw(scene, &mut Dice::new(job.seed(), stream, number));
            let path = folder.join(image_name(number));
            let file = draw::png(&image)
                .map_err(|error| StageError::failed(format!("{}: {error}", path.display()), "report this as a bug"))?;
            std::fs::write(&path, file).map_err(StageError::io(&path))
        })?;
        drawn(chunk * CHUNK + scenes.len());
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<(), StageError> {
    let text = match value {
        // One record per line, so that a message with a line number identifies a record.
        Value::Array(records) => {
            let lines: Vec<String> = records.iter().map(Value::to_string).collect();
            format!("[\n{}\n]\n", lines.join(",\n"))
        }
        other => format!("{other}\n"),
    };
    write_text(path, &text)
}

fn write_text(path: &Path, text: &str) -> Result<(), StageError> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(StageError::io(parent))?;
    }
    std::fs::write(path, text).map_err(StageError::io(path))
}

/// The turns of a small data set, as they appear in conversations: the training text of the built-in tokenizers.
pub(super) fn corpus(seed: u64, images: usize) -> Vec<String> {
    let scenes = training_scenes(seed, images);
    let records = annotation_files(seed, &scenes).into_iter().flat_map(|(_, records)| records);
    let turns = records.flat_map(|record| record["conversations"].as_array().cloned().unwrap_or_default());
    let text = |turn: Value| {
        let role = if turn["from"] == "human" { "USER" } else { " ASSISTANT" };
        let words = turn["value"].as_str().unwrap_or_default();
        format!("{role}: {}", words.replace("<image>\n", "").replace("\n<image>", ""))
    };
    turns.map(text).collect()
}
