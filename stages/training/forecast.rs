//! The memory, the steps and the operations that training will take, computed from sizes alone.

use imp_model::{
    config::{LanguageConfig, VisionConfig},
    memory::{Memory, MicroBatch, Training, Trains},
};

use super::{
    Recipe,
    batches::{AHEAD, Batches},
    features,
    policy::{Card, Cut},
    sizes::Sizes,
};
use crate::{
    contract::forecast::{Ahead, Forecast, MemoryForecast, Outlook, Records, Tower, Work},
    data::{mixture::Mixture, records::RecordSet},
    text::template::Template,
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
    let projector = joined.mm_projector_type;
    let training = Training {
        llm: &llm.config,
        vision: &vision.config,
        projector,
        trains,
        vision_layers: recipe.vision_layers,
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
    let images = known.map_or(usize::MAX, |(_, set)| set.images());
    let held_out = ahead.inputs("validation").filter(|_| recipe.eval_steps > 0);
    let held_out = held_out.map(|outlook| record_set(outlook).map_or(usize::MAX, |set| set.meta().images));
    let fixed = Fixed { llm, vision, adapted: model.adapted, sets: [images].into_iter().chain(held_out).collect() };
    let needed = match ahead.gpu_memory {
        Some(total) => fixed.on_card(recipe, training, ahead, total, &largest),
        None => fixed.on_host(recipe, training, ahead, &largest),
    };
    let size = vision.config.image_size;
    let kept = features::kept_bytes(&vision.config, recipe.vision_layers, images).is_some();
    // Images whose features lie with the records are not decoded, those of which features are kept once by each worker, others in each
    // step anew.
    let most = match known {
        Some((_, set)) if set.sets().all(|set| set.meta().features.is_some()) => 0,
        _ if kept => images.saturating_mul(needed.cards.max(1)),
        _ => usize::MAX,
    };
    let decoded = (largest(recipe.global_batch_size).images * (AHEAD + 2)).min(most);
    let decoded = decoded * size * size * 3 * size_of::<f32>();
    let bytes = needed.host + (decoded + PROGRAM) as u64;
    let training = Training { gradient_checkpointing: needed.cut.recompute, ..training };
    let work = if let Some((batches, set)) = known {
        let (all, encoded) = sizes.all(set, batches, kept);
        Work::Whole(training.operations(all, encoded))
    } else {
        let parts = recipe.global_batch_size as f64 / needed.cut.size as f64;
        let part = largest(needed.cut.size);
        Work::FullStep(training.operations(part, part.images) * parts)
    };
    let memory =
        MemoryForecast { bytes, gpu: needed.card, gpus: needed.cards, at_most: known.is_none(), remedy: LESS_MEMORY };
    Some((memory, work))
}

/// What does not depend on how batches are cut.
struct Fixed<'a> {
    llm: &'a Tower<LanguageConfig>,
    vision: &'a Tower<VisionConfig>,
    /// Whether the language model has an adapter, which is added to weights in f32.
    adapted: bool,
    /// Images of the sets whose features are kept, each if they are few enough: to train on, and held out.
    sets: Vec<usize>,
}

/// The memory of a stage whose batches are cut in this way.
struct Needed {
    cut: Cut,
    card: Option<u64>,
    cards: usize,
    host: u64,
}

impl Fixed<'_> {
    fn on_host(
        &self,
        recipe: &Recipe,
        training: Training<'_>,
        ahead: &Ahead<'_>,
        largest: &dyn Fn(usize) -> MicroBatch,
    ) -> Needed {
        let batch = recipe.global_batch_size;
        let threads = match ahead.runtime.cpus {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given,
        };
        let cut = Cut::on_cpu(ahead.runtime, &self.llm.config, batch, threads);
        let training = Training { gradient_checkpointing: cut.recompute, ..training };
        let Memory { parameters, optimizer, gradients, activations } =
            training.memory(largest(cut.size), batch > cut.size);
        let step = (parameters + optimizer + cut.at_once * (gradients + activations)) as u64;
        let frozen = match training.trains {
            // Widened to f32, and so counted among what trains.
            Trains::All => 0,
            _ if self.adapted => 4 * self.llm.config.parameters() as u64,
            _ => self.llm.bytes,
        };
        let kept = |images: &usize| features::kept_bytes(&self.vision.config, recipe.vision_layers, *images);
        let kept = self.sets.iter().filter_map(kept).sum::<usize>() as u64;
        Needed {
            cut,
            card: None,
            cards: 0,
            host: step + kept + frozen + self.frozen_vision(&training, self.vision.bytes),
        }
    }

    /// The part of the encoder's `bytes` that does not train.
    fn frozen_vision(&self, training: &Training<'_>, bytes: u64) -> u64 {
        let (all, trained) = (self.vision.config.parameters(), training.vision_trained());
        (bytes as f64 * (1.0 - trained as f64 / all.max(1) as f64)) as u64
    }

    fn on_card(
        &self,
        recipe: &Recipe,
        training: Training<'_>,
        ahead: &Ahead<'_>,
        total: u64,
        largest: &dyn Fn(usize) -> MicroBatch,
    ) -> Needed {
        let (batch, precision) = (recipe.global_batch_size, recipe.precision);
        // 4-bit weights stay in 4 bits, others are converted.
        let stored = |bytes: u64, count: usize| {
            if bytes < count as u64 { bytes } else { (precision.bytes() * count) as u64 }
        };
        let llm = match training.trains {
            Trains::All => 0,
            _ if self.adapted => 4 * self.llm.config.parameters() as u64,
            _ => stored(self.llm.bytes, self.llm.config.parameters()),
        };
        let kept =
            |images: &usize| features::device_bytes(&self.vision.config, recipe.vision_layers, *images, precision);
        let kept = self.sets.iter().map(kept).sum::<u64>();
        let vision = stored(self.vision.bytes, self.vision.config.parameters());
        let frozen = llm + self.frozen_vision(&training, vision) + kept;
        let cut = Cut::on_card(ahead.runtime, &training, batch, Card { total, frozen, precision }, largest);
        let training = Training { gradient_checkpointing: cut.recompute, ..training };
        // Of several, each has its share of the moments, and of the sums of the gradients.
        let cards = ahead.runtime.gpus.max(1);
        let accumulates = cards == 1 && batch > cut.size;
        let step = training.device_memory(largest(cut.size), accumulates, precision);
        // A matrix is not shared: one card has its moments, and its sum.
        let largest_matrix = match training.trains {
            Trains::All => 4 * self.llm.config.vocab_size * self.llm.config.hidden_size,
            _ => 0,
        };
        let moments = (step.optimizer / cards).max(2 * largest_matrix).min(step.optimizer);
        let sums = if cards > 1 { (step.parameters / cards).max(largest_matrix).min(step.parameters) } else { 0 };
        let on_card = (step.total() - step.optimizer + moments + sums) as u64;
        // Unless the cards use each other's memory, which nobody knows yet, the host has all sums.
        let all_sums = if cards > 1 { step.parameters as u64 } else { 0 };
        // Before they are moved to the card, weights that train or that an adapter was added to are in f32 on the host.
        let is_widened = self.adapted || matches!(training.trains, Trains::All);
        let widened = if is_widened { 4 * self.llm.config.parameters() as u64 } else { 0 };
        // The host maps the files that it uploads.
        let host = self.llm.bytes + self.vision.bytes + all_sums.max(widened);
        Needed { cut, card: Some(on_card + frozen), cards, host }
    }
}

/// Tokens of the longest record, if known; an image counts as one.
fn longest(outlook: &Outlook) -> Option<usize> {
    match outlook.records.as_ref()? {
        Records::Planned { max_length, .. } => Some(*max_length),
        Records::There(_) => record_set(outlook)?.lengths().max(),
    }
}

/// The template of the conversations in the input `data`, by its name; `None` if there are only captions, or nothing is known.
pub(crate) fn conversation_template(ahead: &Ahead<'_>) -> Option<String> {
    let template = |outlook: &Outlook| match outlook.records.as_ref()? {
        Records::Planned { template, .. } => Some((*template).to_string()),
        Records::There(_) => Some(record_set(outlook)?.meta().template.clone()),
    };
    ahead.inputs("data").filter_map(template).find(|name| name != Template::Plain.name())
}

/// The records, if they are there.
fn record_set(outlook: &Outlook) -> Option<RecordSet> {
    let Some(Records::There(folder)) = &outlook.records else { return None };
    RecordSet::open(folder).ok()
}
