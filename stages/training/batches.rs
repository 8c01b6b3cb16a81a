//! Which records are in which step, and their images, decoded ahead of time on their own thread.
//! Independent of the model.

use std::{
    collections::{BTreeMap, HashSet},
    sync::mpsc::{Receiver, sync_channel},
    thread::Scope,
};

use imp_model::config::VisionConfig;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

use super::Recipe;
use crate::{StageError, data::mixture::Mixture, image::pixels::Recipe as PixelRecipe};

/// The order of all records over all epochs, cut into steps.
pub(super) struct Batches {
    /// Records of each step.
    pub(super) steps: Vec<Vec<usize>>,
}

/// The most records over all steps. Their numbers are in memory: these take 2 GiB.
const MOST_RECORDS: f64 = (1 << 28) as f64;

impl Batches {
    /// Checks that the order of all records fits into memory.
    ///
    /// # Errors
    /// If there are too many epochs of the data.
    pub(super) fn check(recipe: &Recipe, data: &Mixture) -> Result<(), StageError> {
        let epoch: f64 = data.weighted().map(|(numbers, weight)| weight * numbers.len() as f64).sum();
        let mut records = epoch * recipe.epochs;
        if recipe.max_steps > 0 {
            records = records.min(epoch + recipe.max_steps as f64 * recipe.global_batch_size as f64);
        }
        if records <= MOST_RECORDS {
            return Ok(());
        }
        Err(StageError::failed(
            format!("{} epochs of {epoch:.0} records are more than {MOST_RECORDS:.0} records", recipe.epochs),
            "give fewer `epochs`, or limit them by `max_steps`",
        ))
    }

    /// Depends on the seed, the recipe and the data only: a resumed run meets the same batches.
    pub(super) fn new(recipe: &Recipe, data: &Mixture, seed: u64) -> Self {
        let lengths: Vec<i64> = data.modality_lengths().collect();
        let (mut steps, mut per_epoch) = (Vec::new(), 0);
        for epoch in 0..recipe.epochs.ceil() as usize {
            let mut random = ChaCha8Rng::seed_from_u64(seed);
            random.set_stream(epoch as u64);
            let records = epoch_records(data, &mut random);
            steps.extend(epoch_batches(recipe, records, &lengths, &mut random));
            if epoch == 0 {
                per_epoch = steps.len();
            }
            // More epochs would be cut off, or are as empty as this one.
            if steps.is_empty() || recipe.max_steps > 0 && steps.len() >= recipe.max_steps {
                break;
            }
        }
        if recipe.epochs.fract() > 0.0 {
            steps.truncate((recipe.epochs * per_epoch as f64).ceil() as usize);
        }
        if recipe.max_steps > 0 {
            steps.truncate(recipe.max_steps);
        }
        Self { steps }
    }
}

/// One epoch's records: each set is repeated by the whole part of its weight; the fraction adds a random share of it.
fn epoch_records(data: &Mixture, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut records = Vec::with_capacity(data.len());
    for (numbers, weight) in data.weighted() {
        let share = (weight.fract() * numbers.len() as f64).round() as usize;
        records.extend((0..weight as usize).flat_map(|_| numbers.clone()));
        if share > 0 {
            records.extend(&shuffled(numbers, random)[..share]);
        }
    }
    records
}

fn epoch_batches(recipe: &Recipe, records: Vec<usize>, lengths: &[i64], random: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let size = recipe.global_batch_size;
    let cut = |order: Vec<usize>| order.chunks(size).map(<[usize]>::to_vec).collect::<Vec<_>>();
    if !recipe.group_by_modality_length {
        return cut(shuffled(records, random));
    }
    // LLaVA's sampler: a batch has only images or only text, long samples first; the remainders are mixed.
    let (mut batches, mut rest) = (Vec::new(), Vec::new());
    for with_image in [true, false] {
        let order = shuffled(records.iter().copied().filter(|record| (lengths[*record] > 0) == with_image), random);
        for mut batch in cut(order) {
            batch.sort_by_key(|record| std::cmp::Reverse(lengths[*record].abs()));
            if batch.len() == size { batches.push(batch) } else { rest.extend(batch) }
        }
    }
    let order = shuffled(0..batches.len(), random);
    let mut batches: Vec<Vec<usize>> = order.into_iter().map(|batch| batches[batch].clone()).collect();
    batches.extend(cut(rest));
    batches
}

/// Fisher-Yates, spelled out: results depend on its order, which in a library may change.
fn shuffled(items: impl IntoIterator<Item = usize>, random: &mut ChaCha8Rng) -> Vec<usize> {
    let mut items: Vec<usize> = items.into_iter().collect();
    for last in (1..items.len()).rev() {
        items.swap(last, (random.next_u64() % (last as u64 + 1)) as usize);
    }
    items
}

/// Steps whose images are decoded ahead.
pub(super) const AHEAD: usize = 4;

/// Decoded images: (number in the set, `[3, size, size]`).
pub(super) type Images = Vec<(u32, Vec<f32>)>;

/// How the records of a step are dealt out: the parts of so many records, one after the other to each worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deal {
    /// Records in a part.
    pub(super) size: usize,
    pub(super) workers: usize,
}

impl Deal {
    /// The records of `worker` in this step.
    fn of(self, step: &[usize], worker: usize) -> Vec<usize> {
        step.chunks(self.size).skip(worker).step_by(self.workers).flatten().copied().collect()
    }
}

/// Decodes the images of `steps` on its own thread, a few steps ahead, for each worker those of its own records.
///
/// With `once`, images that a worker had in earlier steps are left out, because it keeps their features.
pub(super) fn decode_ahead<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    data: &'env Mixture,
    steps: &'env [Vec<usize>],
    encoder: &'env VisionConfig,
    deal: Deal,
    once: bool,
) -> Receiver<Result<Vec<Images>, StageError>> {
    let (send, receive) = sync_channel(AHEAD);
    scope.spawn(move || {
        let mut seen = vec![HashSet::new(); deal.workers];
        for step in steps {
            if !once {
                seen.iter_mut().for_each(HashSet::clear);
            }
            let of = |(worker, seen): (usize, &mut HashSet<u32>)| {
                decode(data, &deal.of(step, worker), encoder, |number| seen.insert(number))
            };
            let decoded = seen.iter_mut().enumerate().map(of).collect();
            // The receiver is gone: training has stopped.
            if send.send(decoded).is_err() {
                break;
            }
        }
    });
    receive
}

/// Decodes the `wanted` images of `step`, each once. Images with cached features are not needed.
pub(super) fn decode(
    data: &Mixture,
    step: &[usize],
    encoder: &VisionConfig,
    mut wanted: impl FnMut(u32) -> bool,
) -> Result<Images, StageError> {
    let recipe = PixelRecipe::new(data.aspect_ratio(), encoder);
    let mut encoded: BTreeMap<u32, (&str, &[u8])> = BTreeMap::new();
    for number in step {
        let record = data.record(*number)?;
        if record.features().is_some() {
            continue;
        }
        for (number, bytes) in record.image_numbers().zip(record.images()).filter(|(number, _)| wanted(*number)) {
            encoded.insert(number, (record.id, bytes));
        }
    }
    encoded
        .into_par_iter()
        .map(|(number, (id, bytes))| {
            let pixels = recipe.pixels(bytes).map_err(|error| {
                StageError::failed(
                    format!("record `{id}`: its image can't be decoded: {error}"),
                    "run the pipeline's preprocess stage again",
                )
            })?;
            Ok((number, pixels))
        })
        .collect()
}
