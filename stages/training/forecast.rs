//! The memory, the steps and the operations that training will take, computed from sizes alone.

use imp_model::memory::{MicroBatch, Training, Trains};

use super::{
    Recipe,
    batches::{AHEAD, Batches},
    features,
    policy::{gradient_checkpointing, micro_batch_size},
};
use crate::{
    contract::forecast::{Ahead, Forecast, MemoryForecast, Outlook, Records, Work},
    data::{mixture::Mixture, records::RecordSet},
};

/// How to reduce memory.
const LESS_MEMORY: &str = "try a smaller `micro_batch_size` or `gradient_checkpointing = true` under its runtime";
/// Memory of the program itself and its threads.
const PROGRAM: usize = 20 << 20;

/// What training `model` on the input `data` needs, as far as both are known.
pub(crate) fn forecast(recipe: &Recipe, trains: Trains<'_>, model: &Outlook, ahead: &Ahead<'_>) -> Forecast {
    let sets: Option<Vec<_>> = ahead.inputs("data").map(record_set).collect();
    let set = sets.filter(|sets| !sets.is_empty()).and_then(|sets| Mixture::new(sets, &recipe.data_weights).ok());
    // A mixture that is too large fails when the stage runs.
    let set = set.filter(|set| Batches::check(recipe, set).is_ok());
    let known = set.map(|set| (Batches::new(recipe, &set, ahead.seed), set));
    // A limit on the steps is reached unless the records are very few.
    let steps =
        known.as_ref().map(|(batches, _)| batches.steps.len()).or(Some(recipe.max_steps)).filter(|steps| *steps > 0);
    let taken = taken(recipe, trains, model, ahead, known.as_ref());
    let (memory, work) = taken.map_or((None, None), |(memory, work)| (Some(memory), Some(work)));
    Forecast { memory, steps, work, ..Forecast::default() }
}

/// Memory and arithmetic, if the sizes of the model and of the records are known.
fn taken(
    recipe: &Recipe,
    trains: Trains<'_>,
    model: &Outlook,
    ahead: &Ahead<'_>,
    known: Option<&(Batches, Mixture)>,
) -> Option<(MemoryForecast, Work)> {
    let (llm, vision, joined) = (model.llm.as_ref()?, model.vision.as_ref()?, model.joined.as_ref()?);
    let sizes = Sizes {
        patches: vision.config.patches(),
        max_length: joined.tokenizer_model_max_length,
        micro_batch: micro_batch_size(ahead.runtime, &llm.config).min(recipe.global_batch_size),
    };
    let training = Training {
        llm: &llm.config,
        vision: &vision.config,
        projector: joined.mm_projector_type,
        trains,
        gradient_checkpointing: gradient_checkpointing(ahead.runtime, &llm.config),
    };
    let (largest, work) = if let Some((batches, set)) = known {
        let kept = features::kept_bytes(&vision.config, set.images()).is_some();
        let encodes = set.sets().any(|set| set.meta().features.is_none());
        let all = sizes.all(set, batches, kept);
        (sizes.largest(set, batches), Work::Whole(training.operations(all, encodes)))
    } else {
        let longest = ahead.inputs("data").map(longest).collect::<Option<Vec<_>>>()?.into_iter().max()?;
        let part = sizes.bound(longest);
        let parts = recipe.global_batch_size as f64 / sizes.micro_batch as f64;
        (part, Work::FullStep(training.operations(part, true) * parts))
    };
    let step = training.memory(largest, recipe.global_batch_size > sizes.micro_batch);
    let frozen = match trains {
        // Widened to f32, and so counted among what trains.
        Trains::All => 0,
        // An existing adapter is added to weights in f32.
        _ if model.adapted => 4 * llm.config.parameters() as u64,
        _ => llm.bytes,
    };
    let image = vision.config.image_size * vision.config.image_size * 3 * size_of::<f32>();
    let images = known.map_or(usize::MAX, |(_, set)| set.images());
    let decoded = (recipe.global_batch_size * (AHEAD + 2)).min(images) * image;
    let kept = features::kept_bytes(&vision.config, images).unwrap_or(0);
    let own = step.total() + decoded + kept + PROGRAM;
    let bytes = own as u64 + frozen + vision.bytes;
    Some((MemoryForecast { bytes, gpu: None, at_most: known.is_none(), remedy: LESS_MEMORY }, work))
}

/// Tokens of the longest record, if known; an image counts as one.
fn longest(outlook: &Outlook) -> Option<usize> {
    match outlook.records.as_ref()? {
        Records::Planned { max_length } => Some(*max_length),
        Records::There(_) => record_set(outlook)?.lengths().max(),
    }
}

/// The records, if they are there.
fn record_set(outlook: &Outlook) -> Option<RecordSet> {
    let Some(Records::There(folder)) = &outlook.records else { return None };
    RecordSet::open(folder).ok()
}

struct Sizes {
    patches: usize,
    max_length: usize,
    micro_batch: usize,
}

impl Sizes {
    /// The part of a step with the most positions.
    fn largest(&self, set: &Mixture, batches: &Batches) -> MicroBatch {
        let shapes: Vec<(usize, usize)> = set.shapes().collect();
        let rows = |record: &usize| {
            let (tokens, images) = shapes[*record];
            (tokens + images * self.patches.saturating_sub(1)).min(self.max_length)
        };
        let parts = batches.steps.iter().flat_map(|step| step.chunks(self.micro_batch));
        let largest = parts.max_by_key(|part| part.iter().map(rows).sum::<usize>()).unwrap_or_default();
        let labels = |record: &usize| set.record(*record).map_or(0, |record| record.learned());
        MicroBatch {
            rows: largest.iter().map(rows).sum(),
            learned: largest.iter().map(labels).sum(),
            images: largest.iter().map(|record| shapes[*record].1).sum(),
        }
    }

    /// All steps together. `kept`: an image is encoded once, and its features stay in memory.
    fn all(&self, set: &Mixture, batches: &Batches, kept: bool) -> MicroBatch {
        let shapes: Vec<(usize, usize)> = set.shapes().collect();
        let mut all = MicroBatch { rows: 0, learned: 0, images: 0 };
        for record in batches.steps.iter().flatten() {
            let (tokens, images) = shapes[*record];
            all.rows += (tokens + images * self.patches.saturating_sub(1)).min(self.max_length);
            all.learned += set.record(*record).map_or(0, |record| record.learned());
            all.images += images;
        }
        if kept {
            all.images = all.images.min(set.images());
        }
        all
    }

    /// The largest part of a step for records that are not there yet.
    fn bound(&self, max_length: usize) -> MicroBatch {
        let rows = (max_length + self.patches).min(self.max_length);
        MicroBatch {
            rows: rows * self.micro_batch,
            learned: rows.saturating_sub(self.patches) * self.micro_batch,
            images: self.micro_batch,
        }
    }
}
