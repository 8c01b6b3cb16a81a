//! Calibration: which weights matter to a model, seen while it reads records, and what its fewer bits cost on records that it has not
//! seen then. Independent of the formats.

use std::sync::Arc;

use imp_model::{
    Imp, Precision,
    layers::{Importance, Observer, Pass},
};

use crate::{
    Job, StageError,
    contract::event::Progress,
    data::{features::INPUT, mixture::Mixture},
    model_folder::{model_error, tokenizer_folder},
    training::{HeldOut, Loss, record_set},
};

/// The most records that are measured on. They are the same whatever else is chosen, so that perplexities can be compared.
const MEASURED: usize = 32;
/// At most one of so many records is measured on.
const SHARE: usize = 5;

/// The records of the input `calibration`.
pub(super) struct Calibration<'a> {
    job: &'a Job,
    set: Mixture,
    seen: Vec<usize>,
    measured: Vec<usize>,
    read: usize,
}

/// `count` of the numbers, evenly over all of them.
fn evenly(numbers: &[usize], count: usize) -> Vec<usize> {
    (0..count).map(|index| numbers[index * numbers.len() / count]).collect()
}

impl<'a> Calibration<'a> {
    /// Chooses at most `records` of the input's records, evenly over all of them, and others to measure on. `None` without the input.
    ///
    /// # Errors
    /// If there are too few, or the records were made for another model.
    pub(super) fn open(job: &'a Job, records: usize) -> Result<Option<Self>, StageError> {
        let Some(set) = record_set(job, "calibration", &tokenizer_folder(job.input("model")?))? else {
            return Ok(None);
        };
        // Those are of the encoder as it was: they say nothing of one in 4 bits, nor in another precision.
        if set.sets().any(|set| set.meta().features.is_some()) {
            return Err(StageError::failed(
                "the records of `calibration` have the features of their images, and calibration looks at the images",
                format!("give a preprocess stage without `{INPUT}`"),
            ));
        }
        if set.len() < SHARE {
            return Err(StageError::failed(
                format!("`calibration` has {} records, and {SHARE} are the least", set.len()),
                "give a preprocess stage with more records",
            ));
        }
        let measured = evenly(&(0..set.len()).collect::<Vec<_>>(), MEASURED.min(set.len() / SHARE));
        let others: Vec<usize> = (0..set.len()).filter(|number| measured.binary_search(number).is_err()).collect();
        let seen = evenly(&others, records.min(others.len()));
        job.result("calibration_records", seen.len() as f64);
        Ok(Some(Self { job, set, seen, measured, read: 0 }))
    }

    /// Lets `model`, which was not quantized, read the records. Its last block sees what comes after attention at labelled positions
    /// only, the ones whose result is of use. Reports its perplexity on those to measure on.
    ///
    /// # Errors
    /// If a record can't be read, or the job was cancelled.
    pub(super) fn observe(&mut self, model: &Imp) -> Result<Importance, StageError> {
        let observer = Arc::new(Observer::default());
        if !self.seen.is_empty() {
            self.loss(model, self.seen.clone(), &Pass::observed(observer.clone()))?;
        }
        let perplexity =
            self.perplexity(model, "its weights may be damaged, or the records aren't those that it was trained for")?;
        self.job.result("unquantized_perplexity", perplexity);
        Ok(observer.importance())
    }

    /// Reports the perplexity of the model that was written.
    ///
    /// # Errors
    /// If it can't be loaded, a record can't be read, or the job was cancelled.
    pub(super) fn measure(&mut self) -> Result<(), StageError> {
        let model = Imp::load(&self.job.output()).map_err(|error| model_error(self.job, &error))?;
        let perplexity = self.perplexity(&model, "rounding has damaged it: choose a `scheme` with more bits")?;
        self.job.result("perplexity", perplexity);
        Ok(())
    }

    /// `exp` of the mean cross-entropy of the labelled tokens. An error with this `help` if it is not finite.
    fn perplexity(&mut self, model: &Imp, help: &str) -> Result<f64, StageError> {
        let loss = self.loss(model, self.measured.clone(), &Pass::inference())?;
        let perplexity = f64::from(loss.mean).exp();
        if perplexity.is_finite() {
            return Ok(perplexity);
        }
        Err(StageError::failed(format!("the loss of the model on records of the calibration is {loss}"), help))
    }

    fn loss(&mut self, model: &Imp, numbers: Vec<usize>, pass: &Pass) -> Result<Loss, StageError> {
        let all = self.seen.len() + 2 * self.measured.len();
        let (job, read) = (self.job, &mut self.read);
        HeldOut::of(&self.set, numbers, model, Precision::F32)?.loss(model, pass, job, |more| {
            *read += more;
            job.progress(Progress::new(*read, all, "records"));
        })
    }
}
