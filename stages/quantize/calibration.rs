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
    data::mixture::Mixture,
    model_folder::{model_error, tokenizer_folder},
    training::{HeldOut, record_set},
};

/// One of so many records is not calibrated with, but measured on.
const MEASURED: usize = 5;
/// The most records that are measured on if none are calibrated with.
const ONLY_MEASURED: usize = 16;

/// The records of the input `calibration`.
pub(super) struct Calibration<'a> {
    job: &'a Job,
    set: Mixture,
    seen: Vec<usize>,
    measured: Vec<usize>,
    read: usize,
}

impl<'a> Calibration<'a> {
    /// Chooses at most `records` of the input's records, evenly over all of them, and a fourth as many to measure on. `None` without
    /// the input.
    ///
    /// # Errors
    /// If there are too few, or the records were made for another model.
    pub(super) fn open(job: &'a Job, records: usize) -> Result<Option<Self>, StageError> {
        let Some(set) = record_set(job, "calibration", &tokenizer_folder(job.input("model")?))? else {
            return Ok(None);
        };
        let wanted = if records == 0 { ONLY_MEASURED } else { records + records.div_ceil(MEASURED - 1) };
        let count = wanted.min(set.len());
        if count < MEASURED {
            return Err(StageError::failed(
                format!("`calibration` has {count} records, and {MEASURED} are the least"),
                "give the stage that prepares the training data",
            ));
        }
        let evenly = (0..count).map(|index| (index, index * set.len() / count));
        let (measured, seen): (Vec<_>, Vec<_>) =
            evenly.partition(|(index, _)| records == 0 || index % MEASURED == MEASURED - 1);
        let numbers = |chosen: Vec<(usize, usize)>| chosen.into_iter().map(|(_, number)| number).collect::<Vec<_>>();
        let (seen, measured) = (numbers(seen), numbers(measured));
        job.result("calibration_records", seen.len() as f64);
        Ok(Some(Self { job, set, seen, measured, read: 0 }))
    }

    /// Lets `model`, which was not quantized, read the records. Reports its perplexity on those to measure on.
    ///
    /// # Errors
    /// If a record can't be read, or the job was cancelled.
    pub(super) fn observe(&mut self, model: &Imp) -> Result<Importance, StageError> {
        let observer = Arc::new(Observer::default());
        if !self.seen.is_empty() {
            self.loss(model, self.seen.clone(), &Pass::observed(observer.clone()))?;
        }
        let perplexity = self.perplexity(model)?;
        self.job.result("unquantized_perplexity", perplexity);
        Ok(observer.importance())
    }

    /// Reports the perplexity of the model that was written.
    ///
    /// # Errors
    /// If it can't be loaded, a record can't be read, or the job was cancelled.
    pub(super) fn measure(&mut self) -> Result<(), StageError> {
        let model = Imp::load(&self.job.output()).map_err(|error| model_error(self.job, &error))?;
        let perplexity = self.perplexity(&model)?;
        self.job.result("perplexity", perplexity);
        Ok(())
    }

    /// `exp` of the mean cross-entropy of the labelled tokens.
    fn perplexity(&mut self, model: &Imp) -> Result<f64, StageError> {
        Ok(f64::from(self.loss(model, self.measured.clone(), &Pass::inference())?).exp())
    }

    fn loss(&mut self, model: &Imp, numbers: Vec<usize>, pass: &Pass) -> Result<f32, StageError> {
        let all = self.seen.len() + 2 * self.measured.len();
        let (job, read) = (self.job, &mut self.read);
        HeldOut::of(&self.set, numbers, model, Precision::F32)?.loss(model, pass, job, |more| {
            *read += more;
            job.progress(Progress::new(*read, all, "records"));
        })
    }
}
