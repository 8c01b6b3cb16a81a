//! The records that a training stage is given. Independent of how they are used.

use std::path::Path;

use crate::{
    Job, StageError,
    data::{mixture::Mixture, records::RecordSet},
};

/// Opens the records of the inputs `data`.
pub(crate) fn open_records(job: &Job, weights: &[f64]) -> Result<Mixture, StageError> {
    Mixture::new(job.inputs("data").map(|folder| open(job, folder)).collect::<Result<_, _>>()?, weights)
}

/// Opens the held-out records of the input `validation`, if the pipeline gives it.
pub(crate) fn open_validation(job: &Job) -> Result<Option<Mixture>, StageError> {
    job.optional_input("validation").map(|folder| Mixture::new(vec![open(job, folder)?], &[])).transpose()
}

fn open(job: &Job, folder: &Path) -> Result<RecordSet, StageError> {
    RecordSet::open(folder).map_err(|error| job.renamed(error))
}
