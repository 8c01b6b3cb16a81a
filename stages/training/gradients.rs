//! The loss and the gradients of a whole batch, summed over parts that fit into memory. Independent of the optimizer.

use imp_model::{
    Imp,
    layers::Pass,
    tensor::{self, Mat},
};
use rayon::prelude::*;

use super::{features::Features, labels, sizes::positions};
use crate::{StageError, data::records::Record};

/// How a batch is cut into parts. The cut affects the result by the order of sums only.
pub(super) struct Parts {
    /// Records in a part.
    pub(super) size: usize,
    /// Parts that are computed at the same time. It does not affect the result.
    pub(super) at_once: usize,
    /// Whether the backward pass recomputes blocks instead of keeping them.
    pub(super) recompute: bool,
    /// The seed of the step's dropout and noise.
    pub(super) seed: u64,
    /// Alpha of NEFTune's noise; 0 for none.
    pub(super) noise: f64,
}

/// The records of a batch, whose loss is a mean over all of their labelled tokens.
pub(super) struct Batch<'a> {
    records: &'a [Record<'a>],
    /// Labelled tokens.
    pub(super) labels: usize,
    /// Positions of the language model.
    pub(super) tokens: usize,
}

impl<'a> Batch<'a> {
    /// Counts what is in `records`.
    pub(super) fn new(model: &Imp, records: &'a [Record<'a>]) -> Result<Self, StageError> {
        let labels = records.iter().map(|record| labels::learned(model, record)).sum::<Result<usize, _>>()?;
        let patches = model.vision.config.patches();
        let of = |record: &Record<'_>| positions(record.input_ids.len(), record.image_numbers().len(), patches);
        Ok(Self { records, labels, tokens: records.iter().map(of).sum() })
    }

    /// The loss `[1, 1]` and the gradients of all parts. Each labelled token counts the same; the reference averages the means of parts
    /// instead.
    pub(super) fn gradients(
        &self,
        model: &mut Imp,
        features: &Features,
        parts: &Parts,
    ) -> Result<(Mat, Vec<Mat>), StageError> {
        let (mut sum, mut gradients): (Option<Mat>, Vec<Mat>) = (None, Vec::new());
        let all: Vec<_> = self.parts(parts).collect();
        for some in all.chunks(parts.at_once.max(1)) {
            for (loss, part) in self.of_some(model, features, parts, some)? {
                match &mut sum {
                    Some(sum) => tensor::accumulate(sum, &loss),
                    None => sum = Some(loss),
                }
                if gradients.is_empty() {
                    gradients = part;
                } else {
                    gradients.iter_mut().zip(part).for_each(|(to, from)| tensor::accumulate(to, &from));
                }
            }
        }
        // Not read here: until then a GPU works on while the next part is being prepared.
        Ok((sum.unwrap_or_else(|| Mat::zeros(1, 1)), gradients))
    }

    /// The losses and the gradients of some parts, which are computed at the same time.
    fn of_some(
        &self,
        model: &mut Imp,
        features: &Features,
        parts: &Parts,
        some: &[(usize, &[Record<'_>])],
    ) -> Result<Vec<(Mat, Vec<Mat>)>, StageError> {
        if let [(number, records)] = some {
            return Ok(vec![self.of_part(model, features, parts, *number, records)?]);
        }
        let model = &*model;
        let of_part = |(number, records): &(usize, &[Record<'_>])| {
            self.of_part(&mut model.clone(), features, parts, *number, records)
        };
        // All are waited for, so that of several errors it is always the same that is returned.
        some.par_iter().with_max_len(1).map(of_part).collect::<Vec<_>>().into_iter().collect()
    }

    /// The numbers and the records of its parts.
    pub(super) fn parts(&self, parts: &Parts) -> impl Iterator<Item = (usize, &'a [Record<'a>])> + use<'a> {
        self.records.chunks(parts.size).enumerate()
    }

    /// The loss `[1, 1]` and the gradients of the part `number`, which has these `records`.
    fn of_part(
        &self,
        model: &mut Imp,
        features: &Features,
        parts: &Parts,
        number: usize,
        records: &[Record<'_>],
    ) -> Result<(Mat, Vec<Mat>), StageError> {
        let (loss, pass) = self.forward(model, features, parts, number, records)?;
        let gradients = model.gradients(&mut pass.graph.backward(&loss));
        Ok((loss, gradients))
    }

    /// The loss `[1, 1]` of a part, and the pass that has recorded it.
    pub(super) fn forward(
        &self,
        model: &Imp,
        features: &Features,
        parts: &Parts,
        number: usize,
        records: &[Record<'_>],
    ) -> Result<(Mat, Pass), StageError> {
        let pass = Pass::training(parts.seed, number * parts.size).with_noise(parts.noise);
        let pass = if parts.recompute { pass.with_gradient_checkpointing() } else { pass };
        let batch = features.batch(model, records)?;
        let loss = model.loss(&pass, &batch.samples(), &batch.features, self.labels);
        Ok((loss, pass))
    }
}
