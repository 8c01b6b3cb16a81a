//! The state of a training run on disk: one file, written whole or not at all, whose name says what its bytes
//! must hash to.

use std::path::{Path, PathBuf};

use imp_model::{
    Imp, ModelError,
    optim::Optimizer,
    save::{self, DType, NamedTensor},
    weights::Checkpoint,
};

use super::model_error;
use crate::{Job, StageError};

/// What a checkpoint holds besides weights and optimizer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Position {
    /// Steps made.
    pub(super) step: usize,
    /// Losses of the last steps.
    pub(super) losses: Vec<f32>,
}

/// Saves everything that the next step depends on, then forgets older checkpoints.
pub(super) fn save(job: &Job, model: &mut Imp, optimizer: &Optimizer, position: &Position) -> Result<(), StageError> {
    let folder = job.checkpoint();
    let fresh = folder.join("new.safetensors");
    // Two halves, each exact in f32.
    let step = [(position.step >> 12) as f32, (position.step & 0xfff) as f32];
    let mut weights = Vec::new();
    model.trainable(&mut |name, mat| weights.push((name, mat.clone())));
    let mut tensors = vec![NamedTensor::vector("step", &step), NamedTensor::vector("losses", &position.losses)];
    for (name, mat) in &weights {
        tensors.push(NamedTensor::vector(format!("weight.{name}"), mat.values()));
    }
    for (name, moments) in &optimizer.moments {
        tensors.push(NamedTensor::vector(format!("first.{name}"), &moments.first));
        tensors.push(NamedTensor::vector(format!("second.{name}"), &moments.second));
    }
    save::write_tensors(&fresh, tensors, DType::F32).map_err(|error| model_error(job, &error))?;
    let digest = digest(&fresh).map_err(StageError::io(&fresh))?;
    let target = folder.join(format!("step-{:09}-{digest}.safetensors", position.step));
    let old = saved(&folder);
    std::fs::rename(&fresh, &target).map_err(StageError::io(&target))?;
    for path in old.iter().filter(|path| **path != target) {
        // What can't be removed now only takes room until the stage is done.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Goes back to the last state that is whole. If there is none, that is the beginning.
pub(super) fn load(job: &Job, model: &mut Imp, optimizer: &mut Optimizer) -> Position {
    for path in saved(&job.checkpoint()).into_iter().rev() {
        match read(&path, model, optimizer) {
            Ok(position) => return position,
            Err(error) => job.warn(format!("a damaged checkpoint is not used: {error}")),
        }
    }
    Position::default()
}

/// The checkpoints in a folder, the newest last.
fn saved(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| named_digest(path).is_some()).collect();
    paths.sort();
    paths
}

fn named_digest(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.split('-').nth(1)
}

fn digest(path: &Path) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path)?;
    Ok(hasher.finalize().to_hex()[..32].to_string())
}

/// Reads all of it before changing anything.
fn read(path: &Path, model: &mut Imp, optimizer: &mut Optimizer) -> Result<Position, ModelError> {
    let found = digest(path).map_err(|source| ModelError::Io { file: path.into(), source })?;
    if named_digest(path) != Some(found.as_str()) {
        return Err(ModelError::file(path, "its content is not what was written"));
    }
    let file = Checkpoint::open_file(path)?;
    let vector = |name: String, length: usize| file.vector(&name, length).map(|mat| mat.values().to_vec());
    let step = vector("step".into(), 2)?;
    let losses = file.shape("losses")?.iter().product();
    let losses = vector("losses".into(), losses)?;
    let mut loaded = Vec::new();
    for (name, moments) in &optimizer.moments {
        let length = moments.first.len();
        let read = |part: &str| vector(format!("{part}.{name}"), length);
        loaded.push((read("weight")?, read("first")?, read("second")?));
    }
    let mut weights = Vec::new();
    for ((_, moments), (weight, first, second)) in optimizer.moments.iter_mut().zip(loaded) {
        (moments.first, moments.second) = (first, second);
        weights.push(weight);
    }
    let mut weights = weights.into_iter();
    model.trainable(&mut |_, mat| {
        if let Some(weight) = weights.next() {
            mat.values_mut().copy_from_slice(&weight);
        }
    });
    let step = ((step[0] as usize) << 12) + step[1] as usize;
    optimizer.step = step as u64;
    Ok(Position { step, losses })
}
