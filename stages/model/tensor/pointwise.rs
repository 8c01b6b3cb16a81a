//! Sums of matrices, and dropout.

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
pub(super) fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += scale * from;
        }
    });
}

/// Sets a share of the values to zero and scales the others by `1 / (1 - rate)`. The same `seed` drops the
/// same values, whatever the number of threads.
pub fn dropout(g: &Graph, x: &Mat, rate: f32, seed: u64) -> Mat {
    if rate <= 0.0 {
        return x.clone();
    }
    let mut y = x.values().to_vec();
    drop_values(&mut y, rate, seed);
    let y = g.output(x.rows(), x.cols(), y, &[x]);
    let x = x.ghost();
    g.record(&y, move |mut dy, gradients| {
        // The mask is drawn again rather than kept.
        drop_values(&mut dy, rate, seed);
        accumulate(gradients.buffer(&x), &dy, 1.0);
    });
    y
}

fn drop_values(values: &mut [f32], rate: f32, seed: u64) {
    let scale = 1.0 / (1.0 - rate);
    let threshold = (f64::from(rate) * f64::from(u32::MAX)) as u32;
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (index, value) in values.iter_mut().enumerate() {
            let random = (mix(seed.wrapping_add((chunk * CHUNK + index) as u64)) >> 32) as u32;
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
