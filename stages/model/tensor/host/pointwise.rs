//! Elementwise sums.

use rayon::prelude::*;

use super::{fresh::filled, math};

/// Values per task.
pub(super) const CHUNK: usize = 8192;

/// `to += scale * from`.
pub(in crate::tensor) fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| accumulate_part(to, from, scale));
}

/// [`accumulate`] on one thread.
pub(in crate::tensor) fn accumulate_part(to: &mut [f32], from: &[f32], scale: f32) {
    math::simd!(|| {
        for (to, from) in to.iter_mut().zip(from) {
            *to += scale * from;
        }
    });
}

/// `scale * values`.
pub(in crate::tensor) fn scaled(values: &[f32], scale: f32) -> Vec<f32> {
    filled(values.len(), CHUNK, |start, to| accumulate_part(to, &values[start..], scale))
}

/// Adds `rows` to every chunk of `to` of the same length.
pub(in crate::tensor) fn add_repeated(to: &mut [f32], rows: &[f32]) {
    to.chunks_mut(rows.len().max(1)).for_each(|part| accumulate(part, rows, 1.0));
}

/// Multiplies every chunk of `x` of the length of `scale` by it.
pub(in crate::tensor) fn scale_repeated(x: &[f32], scale: &[f32]) -> Vec<f32> {
    let mut y = x.to_vec();
    y.par_chunks_mut(scale.len().max(1)).for_each(|row| {
        row.iter_mut().zip(scale).for_each(|(y, scale)| *y *= scale);
    });
    y
}

/// Adds the gradient of `scale` in [`scale_repeated`], the sum over chunks in order, to `d_scale`.
pub(in crate::tensor) fn scale_repeated_gradient(x: &[f32], dy: &[f32], d_scale: &mut [f32]) {
    let width = d_scale.len().max(1);
    for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
        d_scale.iter_mut().zip(x.iter().zip(dy)).for_each(|(sum, (x, dy))| *sum += x * dy);
    }
}

/// Adds the gradient of `rows` in [`add_repeated`], the sum over chunks in order, to `d_rows`.
pub(in crate::tensor) fn add_repeated_gradient(dy: &[f32], d_rows: &mut [f32]) {
    dy.chunks(d_rows.len().max(1)).for_each(|part| accumulate(d_rows, part, 1.0));
}
