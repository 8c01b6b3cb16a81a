//! The KV cache of generation: keys and values of past positions. Independent of how they are attended to.

use std::{ops::Range, sync::Arc};

use super::{
    Mat,
    device::ops::{Piece, scatter_rows},
    host::attention::Cached,
};

/// The KV cache of one sequence in one layer. Sequences with a common prefix share its keys and values.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    shared: Arc<KeysAndValues>,
    own: KeysAndValues,
}

#[derive(Clone, Debug, Default)]
struct KeysAndValues {
    keys: Rows,
    values: Rows,
}

impl KeysAndValues {
    fn rows(&self, rows: Range<usize>) -> (&[f32], &[f32]) {
        (self.keys.values(rows.clone()), self.values.values(rows))
    }

    fn piece(&self, rows: Range<usize>) -> Piece {
        let [keys, values] = [&self.keys, &self.values].map(|part| part.address(rows.start));
        Piece { keys, values, count: rows.len() }
    }
}

/// A growing matrix with spare capacity.
#[derive(Clone, Debug, Default)]
struct Rows {
    /// `None` before the first row, which determines the width.
    buffer: Option<Mat>,
    /// Number of rows in use.
    used: usize,
}

impl Rows {
    /// Makes room for `more` rows like those of `from`. A full buffer is doubled, so that appending copies each row O(1)
    /// times on average.
    fn reserve(&mut self, from: &Mat, more: usize) {
        let needed = self.used + more;
        match &mut self.buffer {
            _ if more == 0 => {}
            Some(buffer) if buffer.rows() >= needed => buffer.make_unique(),
            Some(old) => {
                let mut buffer = from.blank(needed.max(2 * old.rows()), old.cols());
                buffer.write_rows(0, old, 0..self.used);
                self.buffer = Some(buffer);
            }
            None => self.buffer = Some(from.blank(needed, from.cols())),
        }
    }

    /// Appends `rows` of `from`.
    fn push(&mut self, from: &Mat, rows: Range<usize>) {
        self.reserve(from, rows.len());
        let first = self.used;
        self.used += rows.len();
        if let Some(buffer) = &mut self.buffer {
            buffer.write_rows(first, from, rows);
            // Operands of every later product: rounded once, here.
            buffer.round_rows(first..self.used);
        }
    }

    /// The address on a device of the next row, for which there is room.
    fn next(&mut self) -> u64 {
        self.used += 1;
        self.address(self.used - 1)
    }

    /// The address of a row on a device.
    fn address(&self, row: usize) -> u64 {
        self.buffer.as_ref().and_then(Mat::device_mat).map_or(0, |buffer| buffer.row_address(row))
    }

    /// The values of `rows`, row-major.
    fn values(&self, rows: Range<usize>) -> &[f32] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer.values()[rows.start * buffer.cols()..rows.end * buffer.cols()])
    }
}

impl KvCache {
    /// Appends positions: `rows` of `keys` and `values`, both `[.., kv_heads * head_dim]`.
    pub fn push(&mut self, keys: &Mat, values: &Mat, rows: Range<usize>) {
        self.own.keys.push(keys, rows.clone());
        self.own.values.push(values, rows);
    }

    /// Appends row `i` of `keys` and `values` to the cache `which[i]`, for all `i` in order.
    pub fn append(caches: &mut [Self], which: &[usize], keys: &Mat, values: &Mat) {
        let (Some(new_keys), Some(new_values)) = (keys.device_mat(), values.device_mat()) else {
            for (row, sequence) in which.iter().enumerate() {
                caches[*sequence].push(keys, values, row..row + 1);
            }
            return;
        };
        // Room first: it may move what is there. Then all rows in two launches.
        let mut more = vec![0; caches.len()];
        for sequence in which {
            more[*sequence] += 1;
        }
        for (cache, more) in caches.iter_mut().zip(more) {
            let KeysAndValues { keys: own_keys, values: own_values } = &mut cache.own;
            own_keys.reserve(keys, more);
            own_values.reserve(values, more);
        }
        let (to_keys, to_values): (Vec<u64>, Vec<u64>) = which
            .iter()
            .map(|sequence| {
                let own = &mut caches[*sequence].own;
                (own.keys.next(), own.values.next())
            })
            .unzip();
        scatter_rows(new_keys, &to_keys);
        scatter_rows(new_values, &to_values);
    }

    /// Forgets all but the first `positions`. Their room is kept for others.
    ///
    /// # Panics
    /// If that would shorten a shared prefix, which is a bug in the caller.
    pub fn truncate(&mut self, positions: usize) {
        let shared = self.shared.keys.used;
        assert!(shared == 0 || positions >= shared, "a shared prefix can't be shortened");
        for rows in [&mut self.own.keys, &mut self.own.values] {
            rows.used = rows.used.min(positions - shared);
        }
    }

    /// Turns all positions into a prefix that clones share.
    ///
    /// # Panics
    /// If the cache already has a shared prefix, which is a bug in the caller.
    #[must_use]
    pub fn into_shared(self) -> Self {
        assert_eq!(self.shared.keys.used, 0, "the cache already has a shared prefix");
        Self { shared: Arc::new(self.own), own: KeysAndValues::default() }
    }

    /// The keys and values at `positions`: those in the shared prefix, then the others.
    pub(super) fn at(&self, positions: Range<usize>) -> Cached<'_> {
        let [shared, own] = self.split(positions);
        [self.shared.rows(shared), self.own.rows(own)]
    }

    /// [`KvCache::at`] on a device.
    pub(super) fn pieces(&self, positions: Range<usize>) -> [Piece; 2] {
        let [shared, own] = self.split(positions);
        [self.shared.piece(shared), self.own.piece(own)]
    }

    /// The rows of `positions` in the shared prefix, and those after it.
    fn split(&self, positions: Range<usize>) -> [Range<usize>; 2] {
        let (Range { start, end }, shared) = (positions, self.shared.keys.used);
        [start.min(shared)..end.min(shared), start.max(shared) - shared..end.max(shared) - shared]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_growing_cache_preserves_its_positions() {
        let row = |position: usize| [position as f32, position as f32 + 0.5];
        let mat = Mat::from_host(20, 2, (0..20).flat_map(row).collect());
        let mut prefix = KvCache::default();
        prefix.push(&mat, &mat, 0..3);
        let mut cache = prefix.clone().into_shared();
        let other = cache.clone();
        assert!(cache.at(3..3).iter().all(|(keys, values)| keys.is_empty() && values.is_empty()));
        for position in 3..20 {
            cache.push(&mat, &mat, position..position + 1);
            let expected: Vec<f32> = (1..=position).flat_map(row).collect();
            let [first, second] = cache.at(1..position + 1);
            assert_eq!([first.0, second.0].concat(), expected);
            assert_eq!([first.1, second.1].concat(), expected);
        }
        assert_eq!(cache.at(5..7), [(&[][..], &[][..]), (&[5.0, 5.5, 6.0, 6.5], &[5.0, 5.5, 6.0, 6.5])]);
        assert_eq!(other.own.keys.used, 0, "a clone shares only the prefix");
        // Growing a clone does not change the original.
        let mut clone = prefix.clone();
        prefix.push(&mat, &mat, 3..6);
        clone.push(&mat, &mat, 9..10);
        assert_eq!(prefix.at(3..4)[1].0, row(3));
        assert_eq!(clone.at(3..4)[1].0, row(9));
        // What is forgotten is replaced.
        prefix.truncate(2);
        prefix.push(&mat, &mat, 7..9);
        assert_eq!(prefix.at(1..4)[1].0, [row(1), row(7), row(8)].concat());
        assert_eq!(clone.at(2..4)[1].0, [row(2), row(9)].concat());
    }
}
