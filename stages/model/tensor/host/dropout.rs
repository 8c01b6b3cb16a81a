//! Random numbers that depend only on a seed, a row's id and a column: the mask of dropout, and noise.

use rayon::prelude::*;

use super::{fresh::filled, math};

/// Rows per task.
const ROWS: usize = 16;

/// What happens to values: those whose random number is below the threshold are multiplied by `dropped`, the others by `scale`.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Drop {
    pub(in crate::tensor) threshold: u32,
    pub(in crate::tensor) scale: f32,
    pub(in crate::tensor) dropped: f32,
}

impl Drop {
    /// Zero with probability `rate`, else times `1 / (1 - rate)`.
    pub(in crate::tensor) fn new(rate: f32) -> Self {
        Self { threshold: (f64::from(rate) * f64::from(u32::MAX)) as u32, scale: 1.0 / (1.0 - rate), dropped: 0.0 }
    }

    /// What this takes away from the values.
    pub(in crate::tensor) fn rest(self) -> Self {
        Self { scale: 1.0 - self.scale, dropped: 1.0 - self.dropped, ..self }
    }
}

/// The key of a row's random numbers.
pub(in crate::tensor) fn row_key(seed: u64, row: u64) -> u64 {
    mix(seed ^ mix(row))
}

/// Drops values in place. `rows` has an id for each row.
pub(in crate::tensor) fn drop_values(values: &mut [f32], drop: Drop, seed: u64, rows: &[u64]) {
    let width = width(values, rows);
    let parts = values.par_chunks_mut(ROWS * width).zip(rows.par_chunks(ROWS));
    parts.for_each(|(values, rows)| drop_rows(values, drop, seed, rows));
}

/// [`drop_values`] of a copy.
pub(in crate::tensor) fn dropped(values: &[f32], drop: Drop, seed: u64, rows: &[u64]) -> Vec<f32> {
    let width = width(values, rows);
    filled(values.len(), ROWS * width, |start, to| {
        to.copy_from_slice(&values[start..start + to.len()]);
        drop_rows(to, drop, seed, &rows[start / width..start / width + to.len() / width]);
    })
}

/// [`drop_values`] on one thread.
fn drop_rows(values: &mut [f32], drop: Drop, seed: u64, rows: &[u64]) {
    let Drop { threshold, scale, dropped } = drop;
    for (values, row) in values.chunks_mut(width(values, rows)).zip(rows) {
        let key = row_key(seed, *row);
        let (first, second) = (key as u32, (key >> 32) as u32);
        math::simd!(|| {
            for (index, value) in values.iter_mut().enumerate() {
                let kept = random(index as u32, first, second) >= threshold;
                *value *= if kept { scale } else { dropped };
            }
        });
    }
}

/// Width of a row.
fn width(values: &[f32], rows: &[u64]) -> usize {
    (values.len() / rows.len().max(1)).max(1)
}

/// Fills rows with numbers that are uniform in `-bound..bound`, each row having its bound and its id.
pub(in crate::tensor) fn noise(values: &mut [f32], bounds: &[f32], seed: u64, rows: &[u64]) {
    /// Of a random number only the bits that an f32 can hold are used.
    const UNIT: f32 = 1.0 / (1 << 23) as f32;
    let width = width(values, rows);
    values.par_chunks_mut(width).zip(rows).zip(bounds).with_min_len(ROWS).for_each(|((values, row), bound)| {
        let key = row_key(seed, *row);
        let (first, second) = (key as u32, (key >> 32) as u32);
        math::simd!(|| {
            for (index, value) in values.iter_mut().enumerate() {
                let unit = (random(index as u32, first, second) >> 8) as f32 * UNIT - 1.0;
                *value = bound * unit;
            }
        });
    });
}

/// A stateless random number for a column of a row: the multiply-shift rounds of Wellons' `lowbias32`, with the two
/// halves of the row's key mixed in before and between them. 32 bits, so that it vectorizes.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
fn random(column: u32, first: u32, second: u32) -> u32 {
    let mut x = column.wrapping_mul(0x9e37_79b9) ^ first;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15) ^ second).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// SplitMix64 (Steele, Lea and Flood 2014): maps an id to a random number.
pub(crate) fn mix(id: u64) -> u64 {
    let z = id.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
