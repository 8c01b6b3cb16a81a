//! `cache_vision_features`: computes the features of all images of a set once. The encoder is frozen, so the features are the
//! same in pretraining, finetuning and every point of a sweep. Independent of conversations.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::Path,
};

use imp_model::{config::ImpConfig, load_vision, vision::VisionTower};

use super::config::PreprocessConfig;
use crate::{
    Job, StageError,
    contract::event::Progress,
    data::{
        features::{decode, encode},
        records::{FEATURES, FeatureMeta, RecordSet},
        writer,
    },
    image::size::resize,
    model_folder::{model_error, remark},
    place::{each, places, replicas},
};

/// Default layer of the encoder whose hidden states are the features.
const SELECT_LAYER: i64 = -2;
/// Images decoded at a time for each device.
const CHUNK: usize = 32;
/// Of these, images encoded at a time on each device: what a process loses at most that is killed, and what a stop waits for.
const TOGETHER: usize = 4;

/// Adds the features to the set in the job's output. Resumes what an earlier process began.
pub(super) fn add(encoder: &Path, config: &PreprocessConfig, job: &Job) -> Result<(), StageError> {
    let select_layer = config.mm_vision_select_layer.unwrap_or(SELECT_LAYER);
    let joined = ImpConfig { mm_vision_select_layer: select_layer, ..ImpConfig::default() };
    let places = places(job, config.precision)?;
    remark(job, encoder);
    let mut vision = load_vision(encoder, &joined).map_err(|error| model_error(job, &error))?;
    resize(&mut vision, config.image_size)?;
    let encoder = vision.config.clone();
    let mut others = replicas(&mut vision, &places, VisionTower::move_to)?;
    let mut towers: Vec<&mut VisionTower> = std::iter::once(&mut vision).chain(&mut others).collect();
    let set = RecordSet::open(&job.output())?;
    let (patches, width) = (encoder.patches(), encoder.hidden_size);
    let unfinished = job.checkpoint().join(FEATURES);
    let (mut file, done) =
        open(&unfinished, patches * width * size_of::<f32>()).map_err(StageError::io(&unfinished))?;
    let images = set.meta().images;
    let chunk = CHUNK * towers.len();
    for start in (done..images).step_by(chunk) {
        let numbers = start..(start + chunk).min(images);
        let pixels = decode(&set, numbers.clone(), &encoder)?;
        for (pixels, first) in pixels.chunks(TOGETHER * towers.len()).zip(numbers.step_by(TOGETHER * towers.len())) {
            job.check_cancelled()?;
            // Neighbours for each device, so that none waits for another after each image.
            let share = pixels.len().div_ceil(towers.len());
            let encoded = each(
                &mut towers,
                || (),
                |index, vision| {
                    let own = pixels.iter().skip(index * share).take(share);
                    Ok(own.map(|pixels| encode(vision, pixels).to_host().into_owned()).collect::<Vec<_>>())
                },
            )?;
            for features in encoded.iter().flatten() {
                file.write_all(bytemuck::cast_slice(features)).map_err(StageError::io(&unfinished))?;
            }
            job.progress(Progress::new(first + pixels.len(), images, "images"));
        }
    }
    drop(file);
    job.move_into_output(&unfinished, FEATURES)?;
    let mut meta = set.meta().clone();
    meta.features =
        Some(FeatureMeta { patches, width, mm_vision_select_layer: select_layer, precision: config.precision });
    writer::write_meta(&job.output(), &meta)
}

/// Opens the file at the end of its last complete image. Returns it with the number of images.
fn open(path: &Path, bytes: usize) -> std::io::Result<(File, usize)> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let done = file.metadata()?.len() / bytes.max(1) as u64;
    file.set_len(done * bytes as u64)?;
    Ok((file, done as usize))
}
