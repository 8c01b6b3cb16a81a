//! Sums of matrices, and dropout.

use std::sync::Arc;

use rayon::prelude::*;

use super::{Graph, Mat, activation::CHUNK};

/// `a + b`.
pub fn add(g: &Graph, a: &Mat, b: &Mat) -> Mat {
    add_scaled(g, a, b, 1.0)
}

/// `a + scale * b`.
pub fn add_scaled(g: &Graph, a: &Mat, b: &Mat, scale: f32) -> Mat {
    let mut y = a.values().to_vec();
    accumulate(&mut y, b.values(), scale);
    let y = g.output(a.rows(), a.cols(), y, &[a, b]);
    let (a, b) = ((a.ghost(), a.needs_grad), (b.ghost(), b.needs_grad));
    g.record(&y, move |dy, gradients| {
        if b.1 {
            accumulate(gradients.buffer(&b.0), &dy, scale);
        }
        if a.1 {
            accumulate(gradients.buffer(&a.0), &dy, 1.0);
        }
    });
    y
}

/// `to += scale * from`.
pub fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += scale * from;
        }
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
        let first = mix(seed ^ mix(*row));
        for (index, value) in values.iter_mut().enumerate() {
            let random = (mix(first.wrapping_add(index as u64)) >> 32) as u32;
            *value = if random < threshold { 0.0 } else { *value * scale };
        }
    });
}

/// SplitMix64 (Steele, Lea, Flood 2014): a random number for each place, without a state to carry along.
fn mix(place: u64) -> u64 {
    let z = place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
