//! The memory, the steps and the operations that training will take, computed from sizes alone.

use imp_model::{
    Precision,
    memory::{Training, Trains},
};

use super::{
    Recipe,
    batches::{AHEAD, Batches},
    features,
    policy::{Card, Cut},
    sizes::Sizes,
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
    let sizes = Sizes { patches: vision.config.patches(), max_length: joined.tokenizer_model_max_length };
    let training = Training {
        llm: &llm.config,
        vision: &vision.config,
        projector: joined.mm_projector_type,
        trains,
        gradient_checkpointing: false,
    };
    let longest = match known {
        Some(_) => 0,
        None => ahead.inputs("data").map(longest).collect::<Option<Vec<_>>>()?.into_iter().max()?,
    };
    let largest = |size| match known {
        Some((batches, set)) => sizes.largest(set, batches, size),
        None => sizes.bound(longest, size),
    };
    let frozen = match trains {
        // Widened to f32, and so counted among what trains.
        Trains::All => 0,
        // An existing adapter is added to weights in f32.
        _ if model.adapted => 4 * llm.config.parameters() as u64,
        _ => llm.bytes,
    };
    let images = known.map_or(usize::MAX, |(_, set)| set.images());
    let kept = features::kept_bytes(&vision.config, images).unwrap_or(0) as u64;
    let size = vision.config.image_size;
    let decoded = (recipe.global_batch_size * (AHEAD + 2)).min(images) * size * size * 3 * size_of::<f32>();
    let program = (decoded + PROGRAM) as u64 + vision.bytes;
    let batch = recipe.global_batch_size;
    let (cut, gpu, host) = match ahead.gpu_memory {
        Some(total) => {
            let width = if recipe.precision == Precision::F32 { 4 } else { 2 };
            // 4-bit weights stay in 4 bits, others are converted.
            let stored = |bytes: u64, count: usize| if bytes < count as u64 { bytes } else { width * count as u64 };
            let llm_bytes = if frozen == llm.bytes { stored(frozen, llm.config.parameters()) } else { frozen };
            let frozen_there = llm_bytes + stored(vision.bytes, vision.config.parameters()) + kept / 4 * width;
            let card = Card { total, frozen: frozen_there, precision: recipe.precision };
            let cut = Cut::on_card(ahead.runtime, &training, batch, card, largest);
            let training = Training { gradient_checkpointing: cut.recompute, ..training };
            let step = training.device_memory(largest(cut.size), batch > cut.size, recipe.precision);
            // The host maps the files that it uploads.
            (cut, Some(step.total() as u64 + frozen_there), program + llm.bytes)
        }
        None => {
            let cut = Cut::on_cpu(ahead.runtime, &llm.config, batch);
            let training = Training { gradient_checkpointing: cut.recompute, ..training };
            let step = training.memory(largest(cut.size), batch > cut.size);
            (cut, None, program + step.total() as u64 + kept + frozen)
        }
    };
    let training = Training { gradient_checkpointing: cut.recompute, ..training };
    let work = match known {
        Some((batches, set)) => {
            let kept = features::kept_bytes(&vision.config, set.images()).is_some();
            let encodes = set.sets().any(|set| set.meta().features.is_none());
            Work::Whole(training.operations(sizes.all(set, batches, kept), encodes))
        }
        None => Work::FullStep(training.operations(largest(cut.size), true) * batch as f64 / cut.size as f64),
    };
    Some((MemoryForecast { bytes: host, gpu, at_most: known.is_none(), remedy: LESS_MEMORY }, work))
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
