//! The state of a training run on disk: one file, written whole or not at all.

use std::path::PathBuf;

use imp_model::{
    Imp,
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

fn path(job: &Job) -> PathBuf {
    job.checkpoint().join("state.safetensors")
}

/// Saves everything that the next step depends on.
pub(super) fn save(job: &Job, model: &mut Imp, optimizer: &Optimizer, position: &Position) -> Result<(), StageError> {
    let mut tensors: Vec<NamedTensor> = vec![
        // Two halves, each exact in f32.
        ("step".into(), vec![2], vec![(position.step >> 12) as f32, (position.step & 0xfff) as f32]),
        ("losses".into(), vec![position.losses.len()], position.losses.clone()),
    ];
    model.trainable(&mut |name, mat| {
        tensors.push((format!("weight.{name}"), vec![mat.values().len()], mat.values().to_vec()));
    });
    for (name, moments) in &optimizer.moments {
        tensors.push((format!("first.{name}"), vec![moments.first.len()], moments.first.clone()));
        tensors.push((format!("second.{name}"), vec![moments.second.len()], moments.second.clone()));
    }
    save::write_tensors(&path(job), tensors, DType::F32).map_err(|error| model_error(job, &error))
}

/// Goes back to the saved state. A missing or damaged checkpoint means the beginning.
pub(super) fn load(job: &Job, model: &mut Imp, optimizer: &mut Optimizer) -> Position {
    let path = path(job);
    if !path.exists() {
        return Position::default();
    }
    match read(&path, model, optimizer) {
        Ok(position) => position,
        Err(error) => {
            job.warn(format!("the checkpoint is damaged, so training starts from the beginning: {error}"));
            Position::default()
        }
    }
}

/// Reads all of it before changing anything.
fn read(path: &std::path::Path, model: &mut Imp, optimizer: &mut Optimizer) -> Result<Position, imp_model::ModelError> {
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
