//! Sums of matrices, and dropout.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
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
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(chunk as u64);
        for value in values {
            *value = if random.random::<u32>() < threshold { 0.0 } else { *value * scale };
        }
    });
}
