//! Keys and values of positions that generation has seen. Independent of what attends to them.

use std::{ops::Range, sync::Arc};

use super::{Mat, host::attention::Cached};

/// Keys and values of one sequence in one layer, for generation. Sequences that begin alike share that beginning.
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
}

/// Rows that grow in number, in a matrix that has room for more of them.
#[derive(Clone, Debug, Default)]
struct Rows {
    /// None before the first row, whose width is not known.
    room: Option<Mat>,
    used: usize,
}

impl Rows {
    /// Adds `rows` of `from`. If there is no room, all move into twice as much: few copies for each row in the end.
    fn push(&mut self, from: &Mat, rows: Range<usize>) {
        let needed = self.used + rows.len();
        let room = match self.room.take() {
            Some(room) if room.rows() >= needed => room,
            Some(old) => {
                let mut room = Mat::zeros(needed.max(2 * old.rows()), old.cols());
                room.write_rows(0, &old, 0..self.used);
                room
            }
            None => Mat::zeros(needed, from.cols()),
        };
        self.room.insert(room).write_rows(self.used, from, rows);
        self.used = needed;
    }

    /// The values of some rows.
    fn values(&self, rows: Range<usize>) -> &[f32] {
        self.room.as_ref().map_or(&[], |room| &room.values()[rows.start * room.cols()..rows.end * room.cols()])
    }
}

impl KvCache {
    /// Adds positions: `rows` of `keys` and `values`, both `[.., kv_heads * head_dim]`.
    pub fn push(&mut self, keys: &Mat, values: &Mat, rows: Range<usize>) {
        self.own.keys.push(keys, rows.clone());
        self.own.values.push(values, rows);
    }

    /// The same as a beginning that copies of it share. It must not share one itself.
    ///
    /// # Panics
    /// If it does: a bug of the caller's.
    #[must_use]
    pub fn into_shared(self) -> Self {
        assert_eq!(self.shared.keys.used, 0, "a beginning of a beginning");
        Self { shared: Arc::new(self.own), own: KeysAndValues::default() }
    }

    /// The keys and values of some positions: the shared ones, then its own.
    pub(super) fn seen(&self, positions: Range<usize>) -> Cached<'_> {
        let Range { start, end } = positions;
        let shared = self.shared.keys.used;
        [
            self.shared.rows(start.min(shared)..end.min(shared)),
            self.own.rows(start.max(shared) - shared..end.max(shared) - shared),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_stay_what_they_were_while_a_cache_grows() {
        let row = |at: usize| [at as f32, at as f32 + 0.5];
        let mat = Mat::from_host(20, 2, (0..20).flat_map(row).collect());
        let mut beginning = KvCache::default();
        beginning.push(&mat, &mat, 0..3);
        let mut cache = beginning.clone().into_shared();
        let other = cache.clone();
        assert!(cache.seen(3..3).iter().all(|(keys, values)| keys.is_empty() && values.is_empty()));
        for at in 3..20 {
            cache.push(&mat, &mat, at..at + 1);
            let expected: Vec<f32> = (1..=at).flat_map(row).collect();
            let [first, second] = cache.seen(1..at + 1);
            assert_eq!([first.0, second.0].concat(), expected);
            assert_eq!([first.1, second.1].concat(), expected);
        }
        assert_eq!(cache.seen(5..7), [(&[][..], &[][..]), (&[5.0, 5.5, 6.0, 6.5], &[5.0, 5.5, 6.0, 6.5])]);
        assert_eq!(other.own.keys.used, 0, "a clone has only what it shared");
        // A clone that grows leaves the other as it is.
        let mut clone = beginning.clone();
        beginning.push(&mat, &mat, 3..6);
        clone.push(&mat, &mat, 9..10);
        assert_eq!(beginning.seen(3..4)[1].0, row(3));
        assert_eq!(clone.seen(3..4)[1].0, row(9));
    }
}
