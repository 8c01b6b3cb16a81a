//! Whether a model can learn from its records: looks at all of them before hours of work. Independent of the loop.

use imp_model::{IMAGE_TOKEN, Imp, Sample};
use rayon::prelude::*;

use super::sizes::positions;
use crate::{
    Job, StageError,
    data::{mixture::Mixture, records::Record, share::worth_a_caution},
};

/// What is lost of some records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    /// Records that lose labels at the model's `max_length`.
    cut: usize,
    /// Records without labels.
    masked: usize,
    without_image_token: usize,
    labels: usize,
    /// Positions of the shortest record that is cut.
    shortest_cut: Option<usize>,
}

/// The number of labels of `record` that `model` learns.
///
/// # Errors
/// If the model can't train on it.
pub(super) fn learned(model: &Imp, record: &Record<'_>) -> Result<usize, StageError> {
    let images: Vec<usize> = (0..record.image_numbers().len()).collect();
    let sample = Sample { input_ids: record.input_ids, labels: record.labels, images: &images };
    match model.fault(&sample) {
        None => Ok(model.labelled(&sample)),
        Some(fault) => Err(StageError::failed(
            format!("record `{}` can't be trained on: {fault}", record.id),
            "preprocess the data with the tokenizer of this model",
        )),
    }
}

impl Counts {
    fn of(model: &Imp, record: &Record<'_>) -> Result<Self, StageError> {
        let labels = learned(model, record)?;
        let tokens = record.input_ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        let length = positions(record.input_ids.len(), tokens, model.vision.config.patches());
        // A label on the first token is never learned.
        let first = record.labels.first().is_some_and(|label| *label >= 0 && record.input_ids[0] != IMAGE_TOKEN);
        let cut = labels + usize::from(first) < record.learned();
        Ok(Self {
            cut: usize::from(cut),
            masked: usize::from(labels == 0),
            without_image_token: usize::from(tokens == 0 && record.image_numbers().len() > 0),
            labels,
            shortest_cut: cut.then_some(length),
        })
    }

    fn and(self, other: Self) -> Self {
        Self {
            cut: self.cut + other.cut,
            masked: self.masked + other.masked,
            without_image_token: self.without_image_token + other.without_image_token,
            labels: self.labels + other.labels,
            shortest_cut: self.shortest_cut.into_iter().chain(other.shortest_cut).min(),
        }
    }
}

/// Looks at all records of `data`, which the pipeline calls `input`.
///
/// # Errors
/// If a record has an id that the model does not know, or if no record has a label.
pub(super) fn check(model: &Imp, data: &Mixture, input: &str, job: &Job) -> Result<(), StageError> {
    let numbers = (0..data.len()).into_par_iter();
    let counts = numbers.map(|number| Counts::of(model, &data.record(number)?));
    let counts = counts.try_reduce(Counts::default, |a, b| Ok(a.and(b)))?;
    let (records, limit) = (data.len(), model.config.tokenizer_model_max_length);
    let shortest = counts.shortest_cut.map(|length| {
        format!("the shortest record that is cut at `max_length` = {limit} has {length} positions, an image counting as its patches")
    });
    if records > 0 && counts.labels == 0 {
        let help = shortest.map_or_else(
            || "look at the warnings of the preprocess stage: `imp-flow log` shows them".to_string(),
            |shortest| format!("raise `max_length`: {shortest}"),
        );
        return Err(StageError::failed(
            format!("none of the {records} record(s) of `{input}` has a label to learn"),
            help,
        ));
    }
    if input == "data" {
        job.result("cut", counts.cut as f64);
        job.result("masked", counts.masked as f64);
        job.result("without_image_token", counts.without_image_token as f64);
    }
    let say = |count: usize, what: String| {
        if worth_a_caution(count, records) {
            job.caution(format!("{count} of {records} record(s) of `{input}` {what}"));
        }
    };
    say(counts.cut, format!("lose labels: {}", shortest.unwrap_or_default()));
    say(counts.masked, "have no labels, so nothing is learned from them".into());
    say(
        counts.without_image_token,
        "have an image but no `<image>` in their text, so the model does not see the image".into(),
    );
    Ok(())
}
