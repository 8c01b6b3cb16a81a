//! The loss on records that are not trained on, and the weights with the smallest one. Independent of the training loop.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use imp_model::{
    Imp, Precision,
    encoding::Encoding,
    layers::Pass,
    weights::{NamedTensor, TensorFiles, write_tensors},
};

use super::{batches, digest::digest, features::Features};
use crate::{Job, StageError, contract::side_file, data::mixture::Mixture, model_folder::model_error};

/// Records that go through the model at once.
const AT_ONCE: usize = 8;

/// The smallest loss so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Best {
    pub(super) step: usize,
    pub(super) loss: f32,
}

/// Records on which the loss is measured.
pub(crate) struct HeldOut<'a> {
    set: &'a Mixture,
    numbers: Vec<usize>,
    features: Features,
}

impl<'a> HeldOut<'a> {
    /// All records of a set.
    pub(super) fn new(set: &'a Mixture, model: &Imp, precision: Precision) -> Result<Self, StageError> {
        Self::of(set, (0..set.len()).collect(), model, precision)
    }

    /// Some records of a set, whose features `model` computes in `precision`.
    ///
    /// # Errors
    /// If the features that the set has are of another encoder.
    pub(crate) fn of(
        set: &'a Mixture,
        numbers: Vec<usize>,
        model: &Imp,
        precision: Precision,
    ) -> Result<Self, StageError> {
        Ok(Self { set, numbers, features: Features::new(model, set, precision)? })
    }

    /// The mean cross-entropy of all labelled tokens in a pass without dropout. `read` is told how many records were read.
    ///
    /// # Errors
    /// If a record or its image can't be read, or the job was cancelled.
    pub(crate) fn loss(
        &mut self,
        model: &Imp,
        pass: &Pass,
        job: &Job,
        read: impl FnMut(usize),
    ) -> Result<Loss, StageError> {
        Ok(total(self.losses(model, pass, (0, 1), || job.check_cancelled(), read)?))
    }

    /// The same of parts of the records, for [`total`]: of each `count`th one from `index` on. `check` is asked before each.
    ///
    /// # Errors
    /// If a record or its image can't be read, and those of `check`.
    pub(super) fn losses(
        &mut self,
        model: &Imp,
        pass: &Pass,
        (index, count): (usize, usize),
        check: impl Fn() -> Result<(), StageError>,
        mut read: impl FnMut(usize),
    ) -> Result<Vec<PartLoss>, StageError> {
        let mut losses = Vec::new();
        for part in self.numbers.chunks(AT_ONCE).skip(index).step_by(count) {
            check()?;
            let records = part.iter().map(|number| self.set.record(*number)).collect::<Result<Vec<_>, _>>()?;
            let encoder = &model.vision.config;
            let images = batches::decode(self.set, part, encoder, |number| !self.features.has(number))?;
            self.features.encode(model, images);
            let batch = self.features.batch(model, &records)?;
            let samples = batch.samples();
            let labelled: usize = samples.iter().map(|sample| model.labelled(sample)).sum();
            let loss = (labelled > 0).then(|| model.loss(pass, &samples, &batch.features, labelled).item());
            let mean = loss.unwrap_or_default();
            let ids = || records.iter().map(|record| record.id.to_string()).collect();
            losses.push(PartLoss { mean, labelled, not_finite_in: if mean.is_finite() { Vec::new() } else { ids() } });
            drop(batch);
            self.features.forget();
            read(part.len());
        }
        Ok(losses)
    }
}

/// The loss of some records.
pub(super) struct PartLoss {
    /// Over its labelled tokens.
    mean: f32,
    labelled: usize,
    /// The ids of the records, if it is not finite.
    not_finite_in: Vec<String>,
}

/// The mean loss of records, shown with those where it is not finite.
pub(crate) struct Loss {
    pub(crate) mean: f32,
    /// The ids of the records of the first part whose loss is not finite.
    not_finite_in: Vec<String>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.mean)?;
        if self.not_finite_in.is_empty() {
            Ok(())
        } else {
            write!(f, " (first in records {})", self.not_finite_in.join(", "))
        }
    }
}

/// The loss over the labelled tokens of all `parts`, which are in order.
pub(super) fn total(parts: impl IntoIterator<Item = PartLoss>) -> Loss {
    let (mut sum, mut count, mut not_finite_in) = (0.0, 0, Vec::new());
    for part in parts {
        sum += f64::from(part.mean) * part.labelled as f64;
        count += part.labelled;
        if not_finite_in.is_empty() {
            not_finite_in = part.not_finite_in;
        }
    }
    Loss { mean: (sum / count.max(1) as f64) as f32, not_finite_in }
}

/// The files with the weights after `step`. Their names have the hash of their bytes; those that an older version has written don't.
fn files_of(job: &Job, step: usize) -> Vec<PathBuf> {
    let name = format!("best-{step:09}");
    let is_of = |path: &PathBuf| stem(path).is_some_and(|stem| stem == name || stem.starts_with(&format!("{name}-")));
    bests(job).filter(is_of).collect()
}

fn stem(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()?.strip_suffix(".safetensors")
}

fn bests(job: &Job) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(job.checkpoint()).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| stem(path).is_some_and(|stem| stem.starts_with("best-")))
}

/// Saves the trained weights as they are after `step`.
pub(super) fn keep(job: &Job, model: &mut Imp, step: usize) -> Result<(), StageError> {
    let mut weights = Vec::new();
    model.trainable(&mut |parameter, mat| weights.push((parameter.name, mat.clone())));
    let tensors = weights.iter().map(|(name, mat)| NamedTensor::flat(name.clone(), mat)).collect();
    let fresh = job.checkpoint().join("new-best.safetensors");
    side_file::make_room(&fresh).map_err(StageError::io(&fresh))?;
    write_tensors(&fresh, tensors, Encoding::F32).map_err(|error| model_error(job, &error))?;
    let hash = digest(&fresh).map_err(StageError::io(&fresh))?;
    let target = job.checkpoint().join(format!("best-{step:09}-{hash}.safetensors"));
    std::fs::rename(&fresh, &target).map_err(StageError::io(&target))
}

/// The undamaged file with the weights after `step`.
fn whole(job: &Job, step: usize) -> Option<PathBuf> {
    let is_whole = |path: &PathBuf| match stem(path).and_then(|stem| stem.split('-').nth(2)) {
        Some(hash) => digest(path).is_ok_and(|found| found == hash),
        None => true,
    };
    files_of(job, step).into_iter().find(is_whole)
}

/// Whether the weights of `best` have been saved, and are what they were.
pub(super) fn is_there(job: &Job, best: Option<Best>) -> bool {
    best.is_none_or(|best| whole(job, best.step).is_some())
}

/// Restores the weights that were saved after `step`.
pub(super) fn go_back(job: &Job, model: &mut Imp, step: usize) -> Result<(), StageError> {
    let failed = |error: imp_model::ModelError| model_error(job, &error);
    let path = whole(job, step).ok_or_else(|| {
        let message = format!("the weights of step {step}, the best so far, have been removed or damaged");
        StageError::failed(message, "run the same command again: it goes on from a checkpoint before them")
    })?;
    let file = TensorFiles::open_file(&path).map_err(failed)?;
    let mut result = Ok(());
    model.trainable(&mut |parameter, mat| match file.vector(&parameter.name, mat.count()) {
        Ok(kept) => mat.copy_from(&kept.to_host()),
        Err(error) => result = Err(failed(error)),
    });
    result
}

/// Removes the saved weights of all steps but these, which the checkpoints name that are there.
pub(super) fn forget_others(job: &Job, steps: &[usize]) {
    let kept: Vec<PathBuf> = steps.iter().flat_map(|step| files_of(job, *step)).collect();
    for file in bests(job).filter(|file| !kept.contains(file)) {
        // A file that can't be removed only takes space until the stage is done.
        let _ = std::fs::remove_file(file);
    }
}
