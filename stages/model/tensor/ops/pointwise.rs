//! Sums of matrices, and dropout.

use std::sync::Arc;

use rayon::prelude::*;

use crate::tensor::{Graph, Mat, ops::activation::CHUNK, host::math};

/// `y + x`, in the place of `y`: no clone of `y` may be used after this.
pub fn add(g: &Graph, mut y: Mat, x: &Mat) -> Mat {
    accumulate(y.values_mut(), x.values(), 1.0);
    y.needs_grad |= g.records() && x.needs_grad;
    if x.needs_grad {
        let x = x.ghost();
        // The gradient of y goes on to whatever made y.
        g.record_in_place(&y, move |dy, gradients| accumulate(gradients.buffer(&x), dy, 1.0));
    }
    y
}

/// `to += scale * from`.
pub fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        math::simd(|| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += scale * from;
            }
        });
    });
}

/// Sets a share of the values to zero and scales the others by `1 / (1 - rate)`. What is dropped of row `i`
/// follows from `seed` and `rows[i]` alone: not from its neighbours, nor from the number of threads.
///
/// # Panics
/// If there is not one name a row: a bug of the caller's.
pub fn dropout(g: &Graph, x: &Mat, rate: f32, seed: u64, rows: &Arc<[u64]>) -> Mat {
    if rate <= 0.0 {
        return x.clone();
    }
    assert_eq!(x.rows(), rows.len(), "dropout needs a name for every row");
    let mut y = x.values().to_vec();
    drop_values(&mut y, rate, seed, rows);
    let y = g.output(x.rows(), x.cols(), y, &[x]);
    let (x, rows) = (x.ghost(), Arc::clone(rows));
    g.record(&y, move |mut dy, gradients| {
        // The mask is drawn again rather than kept.
        drop_values(&mut dy, rate, seed, &rows);
        accumulate(gradients.buffer(&x), &dy, 1.0);
    });
    y
}

fn drop_values(values: &mut [f32], rate: f32, seed: u64, rows: &[u64]) {
    let scale = 1.0 / (1.0 - rate);
    let threshold = (f64::from(rate) * f64::from(u32::MAX)) as u32;
    let width = (values.len() / rows.len().max(1)).max(1);
    values.par_chunks_mut(width).zip(rows).with_min_len(16).for_each(|(values, row)| {
        let key = mix(seed ^ mix(*row));
        let (first, second) = (key as u32, (key >> 32) as u32);
        math::simd(|| {
            for (index, value) in values.iter_mut().enumerate() {
                let kept = random(index as u32, first, second) >= threshold;
                *value *= if kept { scale } else { 0.0 };
            }
        });
    });
}

/// A random number for each place of a row, without a state to carry along: rounds of multiplying and shifting
/// (as in Wellons' `lowbias32`) with the row's key before and between them. 32 bits, so that it vectorises.
#[inline(always)]
#[allow(clippy::inline_always, reason = "loops over it vectorise only if it is inlined")]
fn random(place: u32, first: u32, second: u32) -> u32 {
    let mut x = place.wrapping_mul(0x9e37_79b9) ^ first;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15) ^ second).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// SplitMix64 (Steele, Lea, Flood 2014): turns a name into a random number.
pub(crate) fn mix(name: u64) -> u64 {
    let z = name.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
