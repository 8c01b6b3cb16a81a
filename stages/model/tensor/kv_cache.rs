//! Keys and values of positions that generation has seen. Independent of what attends to them.

use std::{ops::Range, sync::Arc};

use super::host::attention::Cached;

/// Keys and values of one sequence in one layer, for generation. Sequences that begin alike share that beginning.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    shared: Arc<KeysAndValues>,
    own: KeysAndValues,
}

#[derive(Clone, Debug, Default)]
struct KeysAndValues {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvCache {
    /// Adds positions, rows of `[.., kv_heads * head_dim]`.
    pub fn push(&mut self, keys: &[f32], values: &[f32]) {
        self.own.keys.extend_from_slice(keys);
        self.own.values.extend_from_slice(values);
    }

    /// The same as a beginning that copies of it share. It must not share one itself.
    ///
    /// # Panics
    /// If it does: a bug of the caller's.
    #[must_use]
    pub fn into_shared(self) -> Self {
        assert!(self.shared.keys.is_empty(), "a beginning of a beginning");
        Self { shared: Arc::new(self.own), own: KeysAndValues::default() }
    }

    /// The keys and values of some positions: the shared ones, then its own.
    pub(super) fn seen(&self, positions: Range<usize>, width: usize) -> Cached<'_> {
        let seen = positions.start * width..positions.end * width;
        let shared = self.shared.keys.len();
        let first = seen.start.min(shared)..seen.end.min(shared);
        let second = seen.start.max(shared) - shared..seen.end.max(shared) - shared;
        [
            (&self.shared.keys[first.clone()], &self.shared.values[first]),
            (&self.own.keys[second.clone()], &self.own.values[second]),
        ]
    }
}
