//! The loss and the gradients of a whole batch, summed over parts that fit into memory. Independent of the optimizer.

use imp_model::{
    Imp,
    layers::Pass,
    tensor::{self, Mat},
};

use super::{features::Features, labels, sizes::positions};
use crate::{StageError, data::records::Record};

/// How a batch is cut into parts. The cut affects the result by the order of sums only.
pub(super) struct Parts {
    /// Records in a part.
    pub(super) size: usize,
    /// Whether the backward pass recomputes blocks instead of keeping them.
    pub(super) recompute: bool,
    /// The seed of the step's dropout and noise.
    pub(super) seed: u64,
    /// Alpha of NEFTune's noise; 0 for none.
    pub(super) noise: f64,
}

/// The result of a batch.
pub(super) struct Batch {
    pub(super) loss: f32,
    pub(super) gradients: Vec<Mat>,
    /// Positions of the language model.
    pub(super) tokens: usize,
    /// Labelled tokens, over which the loss is the mean.
    pub(super) labels: usize,
}

/// The loss and the gradients of `records`. Each labelled token counts the same; the reference averages the means of parts
/// instead.
pub(super) fn of_batch(
    model: &mut Imp,
    features: &Features,
    records: &[Record<'_>],
    parts: &Parts,
) -> Result<Batch, StageError> {
    let labelled = records.iter().map(|record| labels::learned(model, record)).sum::<Result<usize, _>>()?;
    let (mut sum, mut gradients): (Option<Mat>, Vec<Mat>) = (None, Vec::new());
    for (part, records) in records.chunks(parts.size).enumerate() {
        let pass = Pass::training(parts.seed, part * parts.size).with_noise(parts.noise);
        let pass = if parts.recompute { pass.with_gradient_checkpointing() } else { pass };
        let batch = features.batch(model, records)?;
        let loss = model.loss(&pass, &batch.samples(), &batch.features, labelled);
        let part = model.gradients(&mut pass.graph.backward(&loss));
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
    // Read at the end: until then a GPU works on while the next part is being prepared.
    let loss = sum.as_ref().map_or(0.0, Mat::item);
    let patches = model.vision.config.patches();
    let of = |record: &Record<'_>| positions(record.input_ids.len(), record.image_numbers().len(), patches);
    let tokens = records.iter().map(of).sum();
    Ok(Batch { loss, gradients, tokens, labels: labelled })
}
