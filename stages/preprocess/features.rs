//! `cache_vision_features`: the features of all images of a set, computed once. The encoder is frozen, so they are the same
//! in pretraining, finetuning and every point of a sweep. Does not know records.
//!
//! `features.bin` holds `[patches, width]` f32, little-endian, for each image in the set's order. They are not rounded:
//! training on them gives the very weights that it gives without.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
};

use imp_model::{config::ImpConfig, load_vision, tensor::Mat, vision::Siglip};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    PreprocessConfig,
    pixels::{self, AspectRatio},
    records::RecordSet,
    writer,
};
use crate::{
    Job, StageError,
    event::Progress,
    training::{model_error, resize},
};

/// The input that names the encoder.
pub(super) const INPUT: &str = "cache_vision_features";
/// The file.
pub(super) const FILE: &str = "features.bin";
/// Which hidden states of the encoder are the features, unless the configuration says otherwise.
const SELECT_LAYER: i64 = -2;
/// Images that are decoded at a time.
const CHUNK: usize = 32;

/// What they were made with, in `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeatureMeta {
    /// Rows of an image.
    pub patches: usize,
    /// Width of a row.
    pub width: usize,
    /// Which of the encoder's hidden states they are.
    pub mm_vision_select_layer: i64,
}

/// Adds the features to the set that lies in the job's output. Goes on where an earlier process was stopped.
pub(super) fn add(encoder: &Path, config: &PreprocessConfig, job: &Job) -> Result<(), StageError> {
    let select_layer = config.mm_vision_select_layer.unwrap_or(SELECT_LAYER);
    let joined = ImpConfig { mm_vision_select_layer: select_layer, ..ImpConfig::default() };
    let mut vision = load_vision(encoder, &joined).map_err(|error| model_error(job, &error))?;
    resize(&mut vision, config.image_size)?;
    let set = RecordSet::open(&job.output())?;
    let (patches, width) = (vision.config.patches(), vision.config.hidden_size);
    let unfinished = job.checkpoint().join(FILE);
    let (mut file, done) =
        go_on(&unfinished, patches * width * size_of::<f32>()).map_err(StageError::io(&unfinished))?;
    let images = set.meta().images;
    for start in (done..images).step_by(CHUNK) {
        job.check_cancelled()?;
        let numbers = start..(start + CHUNK).min(images);
        for pixels in decode(&set, numbers.clone(), vision.config.image_size)? {
            let features = encode(&vision, pixels);
            file.write_all(bytemuck::cast_slice(&features.to_host())).map_err(StageError::io(&unfinished))?;
        }
        job.progress(Progress::new(numbers.end, images, "images"));
    }
    drop(file);
    let finished = job.output().join(FILE);
    std::fs::rename(&unfinished, &finished).map_err(StageError::io(&finished))?;
    let mut meta = set.meta().clone();
    meta.features = Some(FeatureMeta { patches, width, mm_vision_select_layer: select_layer });
    writer::write_meta(&job.output(), &meta)
}

/// Opens the file behind its last whole image, and says how many there are.
fn go_on(path: &Path, bytes: usize) -> std::io::Result<(File, usize)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let done = file.metadata()?.len() / bytes.max(1) as u64;
    file.set_len(done * bytes as u64)?;
    Ok((file, done as usize))
}

/// Each image by itself, so that its features don't depend on which others came along.
fn encode(vision: &Siglip, pixels: Vec<f32>) -> Mat {
    vision.encode(&[pixels])
}

fn decode(set: &RecordSet, numbers: std::ops::Range<usize>, size: usize) -> Result<Vec<Vec<f32>>, StageError> {
    let aspect_ratio = AspectRatio::by_name(&set.meta().image_aspect_ratio).unwrap_or_default();
    let decoded = numbers.into_par_iter().map(|number| {
        pixels::pixels(set.image(number).unwrap_or_default(), aspect_ratio, size).map_err(|error| {
            StageError::failed(format!("image {number} of the set can't be decoded: {error}"), "run it again")
        })
    });
    decoded.collect()
}

/// Whether `set`'s features, if it has any, are those of `vision`: of the same sizes, and of its first image the same
/// values. Not to the bit, as they may have been computed on another machine.
pub(crate) fn check(set: &RecordSet, vision: &Siglip, select_layer: i64) -> Result<(), StageError> {
    let Some(meta) = &set.meta().features else { return Ok(()) };
    let own = FeatureMeta {
        patches: vision.config.patches(),
        width: vision.config.hidden_size,
        mm_vision_select_layer: select_layer,
    };
    let same = *meta == own && first_is_same(set, vision)?;
    if same {
        return Ok(());
    }
    Err(StageError::failed(
        "the features in the records are not those of this model's vision encoder",
        format!("give the preprocess stage the same encoder as `{INPUT}` and the same `image_size`, or none"),
    ))
}

fn first_is_same(set: &RecordSet, vision: &Siglip) -> Result<bool, StageError> {
    /// Sums in another order differ by far less, another encoder's features by far more.
    const TOLERANCE: f32 = 1e-2;
    let Some(kept) = set.features(0) else { return Ok(true) };
    let pixels = decode(set, 0..1, vision.config.image_size)?;
    let own: Vec<f32> = pixels.into_iter().flat_map(|pixels| encode(vision, pixels).to_host().into_owned()).collect();
    let largest = own.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    Ok(own.iter().zip(kept).all(|(own, kept)| (own - kept).abs() <= TOLERANCE * largest))
}
