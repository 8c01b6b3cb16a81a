//! The sizes of batches: positions, labels and images. Independent of models and devices.

use imp_model::memory::MicroBatch;

use super::batches::Batches;
use crate::data::mixture::Mixture;

/// Positions of a record with this many ids, of which each image's one becomes its patches.
pub(super) fn positions(ids: usize, images: usize, patches: usize) -> usize {
    ids + images * patches.saturating_sub(1)
}

/// What turns records into positions of the language model.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) patches: usize,
    pub(super) max_length: usize,
}

impl Sizes {
    /// The part of a step with the most positions, if parts have `size` records.
    pub(super) fn largest(self, set: &Mixture, batches: &Batches, size: usize) -> MicroBatch {
        let shapes: Vec<(usize, usize)> = set.shapes().collect();
        let rows = |record: &usize| {
            let (tokens, images) = shapes[*record];
            positions(tokens, images, self.patches).min(self.max_length)
        };
        let parts = batches.steps.iter().flat_map(|step| step.chunks(size.max(1)));
        let largest = parts.max_by_key(|part| part.iter().map(rows).sum::<usize>()).unwrap_or_default();
        let labels = |record: &usize| set.record(*record).map_or(0, |record| record.learned());
        MicroBatch {
            rows: largest.iter().map(rows).sum(),
            learned: largest.iter().map(labels).sum(),
            images: largest.iter().map(|record| shapes[*record].1).sum(),
        }
    }

    /// All steps together, and how many images are encoded: not those whose features lie with the records, and with `kept`, where
    /// features stay in memory, each once (of several GPUs, each may encode it once more, which is not counted).
    pub(super) fn all(self, set: &Mixture, batches: &Batches, kept: bool) -> (MicroBatch, usize) {
        let shapes: Vec<(usize, usize)> = set.shapes().collect();
        let (mut all, mut encoded) = (MicroBatch { rows: 0, learned: 0, images: 0 }, 0);
        for record in batches.steps.iter().flatten() {
            let (tokens, images) = shapes[*record];
            all.rows += positions(tokens, images, self.patches).min(self.max_length);
            all.images += images;
            let Ok(record) = set.record(*record) else { continue };
            all.learned += record.learned();
            encoded += if record.features().is_none() { images } else { 0 };
        }
        let different = set.sets().filter(|set| set.meta().features.is_none()).map(|set| set.meta().images).sum();
        (all, if kept { encoded.min(different) } else { encoded })
    }

    /// The largest part of `size` records that are not there yet.
    pub(super) fn bound(self, max_length: usize, size: usize) -> MicroBatch {
        let rows = (max_length + self.patches).min(self.max_length);
        MicroBatch { rows: rows * size, learned: rows.saturating_sub(self.patches) * size, images: size }
    }
}
