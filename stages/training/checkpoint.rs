//! The state of a training run on disk: one file, written whole or not at all, with the hash of its bytes in its name.
//! Independent of the training loop.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use imp_model::{
    Imp, ModelError,
    encoding::Encoding,
    optim::Optimizer,
    tensor::Moments,
    weights::{NamedTensor, TensorFiles, write_tensors},
};

use super::{
    digest::digest,
    divergence::LAST,
    held_out::{self, Best},
};
use crate::{Job, StageError, contract::side_file, model_folder::model_error, place::each};

/// The tensor that has a value if the held-out loss is still to be measured.
const DUE: &str = "held_out_due";

/// A model in training, and the optimizer of its share of the parameters. Those of all replicas are all parameters.
pub(super) struct Replica<'a> {
    pub(super) model: &'a mut Imp,
    pub(super) optimizer: Optimizer,
}

/// What a checkpoint holds besides weights and optimizer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Position {
    /// Steps made.
    pub(super) step: usize,
    /// Losses of the last steps.
    pub(super) losses: Vec<f32>,
    /// The smallest held-out loss.
    pub(super) best: Option<Best>,
    /// Whether the held-out loss after the last step is still to be measured.
    pub(super) is_held_out_due: bool,
}

impl Position {
    /// Counts a step with this loss, if it had one.
    pub(super) fn add(&mut self, loss: Option<f32>) {
        self.step += 1;
        self.losses.extend(loss);
        let surplus = self.losses.len().saturating_sub(LAST);
        self.losses.drain(..surplus);
    }
}

/// Saves everything that the next step depends on, then removes older checkpoints. The file does not depend on the number of
/// replicas.
pub(super) fn save(job: &Job, replicas: &mut [&mut Replica<'_>], position: &Position) -> Result<(), StageError> {
    let folder = job.checkpoint();
    let fresh = folder.join("new.safetensors");
    side_file::make_room(&fresh).map_err(StageError::io(&fresh))?;
    let step = halves(position.step);
    let best = position.best.map(|best| [halves(best.step).as_slice(), &[best.loss]].concat()).unwrap_or_default();
    let mut weights = Vec::new();
    if let Some(Replica { model, .. }) = replicas.first_mut() {
        model.trainable(&mut |parameter, mat| weights.push((parameter.name, mat.clone())));
    }
    let due: &[f32] = if position.is_held_out_due { &[1.0] } else { &[] };
    let numbers: [(&str, &[f32]); 4] = [("step", &step), ("losses", &position.losses), ("best", &best), (DUE, due)];
    let mut tensors: Vec<_> = numbers.map(|(name, values)| NamedTensor::vector(name, values)).into();
    for (name, mat) in &weights {
        tensors.push(NamedTensor::flat(format!("weight.{name}"), mat));
    }
    for (name, moments) in in_order(replicas) {
        tensors.push(NamedTensor::flat(format!("first.{name}"), &moments.first));
        tensors.push(NamedTensor::flat(format!("second.{name}"), &moments.second));
    }
    write_tensors(&fresh, tensors, Encoding::F32).map_err(|error| model_error(job, &error))?;
    let digest = digest(&fresh).map_err(StageError::io(&fresh))?;
    let target = folder.join(format!("step-{:09}-{digest}.safetensors", position.step));
    side_file::make_room(&target).map_err(StageError::io(&target))?;
    let old = saved(&folder);
    std::fs::rename(&fresh, &target).map_err(StageError::io(&target))?;
    let surplus = (old.len() + 1).saturating_sub(job.runtime().keep_checkpoints.max(1));
    // Of one step there is one: the other was saved before its held-out loss was measured.
    let others = old.iter().filter(|path| **path != target).enumerate();
    for (_, path) in others.filter(|(at, path)| *at < surplus || named_step(path) == named_step(&target)) {
        // A file that can't be removed only takes space until the stage is done.
        let _ = std::fs::remove_file(path);
    }
    // Also those of older checkpoints, which are there for the case that this one is damaged.
    let best = |path: PathBuf| best_of(&TensorFiles::open_file(&path).ok()?, &path).ok()?;
    let bests = saved(&folder).into_iter().filter_map(best).chain(position.best);
    let steps: Vec<usize> = bests.map(|best| best.step).collect();
    held_out::forget_others(job, &steps);
    Ok(())
}

/// The best weights that a checkpoint names.
fn best_of(file: &TensorFiles, path: &Path) -> Result<Option<Best>, ModelError> {
    let length = file.shape("best")?.iter().product();
    let numbers = file.vector("best", length)?;
    match *numbers.to_host() {
        [] => Ok(None),
        [high, low, loss] => match whole(&[high, low]) {
            Some(step) => Ok(Some(Best { step, loss })),
            None => Err(ModelError::file(path, "the step of its best weights is not a number of steps")),
        },
        _ => Err(ModelError::file(path, "it does not say which weights are the best")),
    }
}

/// Two numbers, each exact in f32.
fn halves(step: usize) -> [f32; 2] {
    [(step >> 12) as f32, (step & 0xfff) as f32]
}

/// The number of which these are the [`halves`]; `None` if they are those of no number.
fn whole(numbers: &[f32]) -> Option<usize> {
    let [high, low, ..] = *numbers else { return None };
    let is_half = |number: f32, below: f32| (0.0..below).contains(&number) && number.fract() == 0.0;
    (is_half(high, 16_777_216.0) && is_half(low, 4096.0)).then(|| ((high as usize) << 12) + low as usize)
}

/// Restores the last intact checkpoint, or the initial state if there is none. With `keep_best` the best weights must be
/// there, too.
///
/// # Errors
/// If a checkpoint that could be read can't be read any more, or a replica's device fails.
pub(super) fn load(job: &Job, replicas: &mut [&mut Replica<'_>], keep_best: bool) -> Result<Position, StageError> {
    for path in saved(&job.checkpoint()).into_iter().rev() {
        match read(&path, replicas, |best| !keep_best || held_out::is_there(job, best)) {
            Ok(saved) => return saved.restore(replicas),
            Err(error) => job.warn(format!("ignored a damaged checkpoint: {error}")),
        }
    }
    Ok(Position::default())
}

/// The checkpoints in a folder, the newest last.
fn saved(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| named_digest(path).is_some()).collect();
    paths.sort();
    paths
}

fn named_step(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.split('-').next()
}

fn named_digest(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.strip_suffix(".safetensors")?.split('-').nth(1)
}

/// Name and moments of all parameters, in the order of [`Imp::trainable`].
fn in_order<'a>(replicas: &'a [&mut Replica<'_>]) -> impl Iterator<Item = &'a (String, Moments)> {
    let optimizers = replicas.iter().map(|replica| &replica.optimizer);
    let all: BTreeMap<usize, _> =
        optimizers.flat_map(|optimizer| optimizer.share.iter().copied().zip(&optimizer.moments)).collect();
    all.into_values()
}

/// A checkpoint that can be restored.
pub(super) struct Saved {
    position: Position,
    /// Has weights, first and second moments of all parameters. They are read one by one: all at once would be three times
    /// the trained weights beside those that are there.
    path: PathBuf,
    /// The parameters' names and numbers of values, in the order of [`Imp::trainable`].
    parameters: Vec<(String, usize)>,
}

/// Reads a checkpoint of these replicas.
pub(super) fn read(
    path: &Path,
    replicas: &[&mut Replica<'_>],
    best_is_there: impl Fn(Option<Best>) -> bool,
) -> Result<Saved, ModelError> {
    let found = digest(path).map_err(|source| ModelError::Io { file: path.into(), source })?;
    if named_digest(path) != Some(found.as_str()) {
        return Err(ModelError::file(path, "its content has changed since it was written"));
    }
    let file = TensorFiles::open_file(path)?;
    let vector = |name: String, length: usize| file.vector(&name, length).map(|mat| mat.to_host().into_owned());
    let step = vector("step".into(), 2)?;
    let losses = file.shape("losses")?.iter().product();
    let losses = vector("losses".into(), losses)?;
    let best = best_of(&file, path)?;
    // Older checkpoints don't have it.
    let is_held_out_due = file.shape(DUE).is_ok_and(|shape| shape.iter().product::<usize>() > 0);
    let damaged = || ModelError::file(path, "its number of steps is not a number of steps");
    let step = whole(&step).ok_or_else(damaged)?;
    let parameters: Vec<(String, usize)> =
        in_order(replicas).map(|(name, moments)| (name.clone(), moments.first.count())).collect();
    // All of it is there, and its bytes are those that were written: the replicas don't get a part of a checkpoint.
    for (name, count) in &parameters {
        for part in ["weight", "first", "second"] {
            let name = format!("{part}.{name}");
            if file.shape(&name)?.iter().product::<usize>() != *count {
                return Err(ModelError::file(path, format!("`{name}` has another size than in this training")));
            }
        }
    }
    if !best_is_there(best) {
        return Err(ModelError::file(path, "the file of the best weights so far is missing or damaged"));
    }
    Ok(Saved { position: Position { step, losses, best, is_held_out_due }, path: path.into(), parameters })
}

impl Saved {
    /// Brings the replicas of which it was read to its state, in the memory that they have.
    ///
    /// # Errors
    /// If the file can't be read any more, or a replica's device fails.
    pub(super) fn restore(self, replicas: &mut [&mut Replica<'_>]) -> Result<Position, StageError> {
        let Self { position, path, parameters } = self;
        let lost = |error: ModelError| {
            StageError::failed(
                error.to_string(),
                "run the same command again; if this one is damaged, an older checkpoint is used",
            )
        };
        each(
            replicas,
            || (),
            |_, Replica { model, optimizer }| {
                let file = TensorFiles::open_file(&path).map_err(lost)?;
                let read = |part: &str, (name, count): &(String, usize)| file.vector(&format!("{part}.{name}"), *count);
                let of_share = optimizer.share.iter().map(|number| &parameters[*number]);
                for ((_, moments), of) in optimizer.moments.iter_mut().zip(of_share) {
                    moments.first.copy_from(&read("first", of).map_err(lost)?.to_host());
                    moments.second.copy_from(&read("second", of).map_err(lost)?.to_host());
                }
                let (mut all, mut result) = (parameters.iter(), Ok(()));
                model.trainable(&mut |_, mat| {
                    if let Some(of) = all.next().filter(|_| result.is_ok()) {
                        result = read("weight", of).map(|weight| mat.copy_from(&weight.to_host()));
                    }
                });
                optimizer.step = position.step as u64;
                result.map_err(lost)
            },
        )?;
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::{halves, whole};

    #[test]
    fn only_halves_of_a_number_are_one() {
        for step in [0, 1, 4095, 4096, 123_456_789] {
            assert_eq!(whole(&halves(step)), Some(step));
        }
        for wrong in [[1e20, 0.0], [0.0, 4096.0], [-1.0, 0.0], [0.5, 0.0], [f32::NAN, 0.0], [0.0, f32::INFINITY]] {
            assert_eq!(whole(&wrong), None, "{wrong:?}");
        }
        assert_eq!(whole(&[1.0]), None);
    }
}
