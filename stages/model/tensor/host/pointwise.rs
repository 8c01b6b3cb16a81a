//! Elementwise sums, and factors of columns.

use rayon::prelude::*;

use super::math;

/// Values per task.
pub(super) const CHUNK: usize = 8192;

/// `to += scale * from`.
pub(in crate::tensor) fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
        math::simd(|| {
            for (to, from) in to.iter_mut().zip(from) {
                *to += scale * from;
            }
        });
    });
}

/// Adds `rows` to every chunk of `to` of the same length.
pub(in crate::tensor) fn add_repeated(to: &mut [f32], rows: &[f32]) {
    to.chunks_mut(rows.len().max(1)).for_each(|part| accumulate(part, rows, 1.0));
}

/// Adds the gradient of `rows` in [`add_repeated`], the sum over chunks in order, to `d_rows`.
pub(in crate::tensor) fn add_repeated_gradient(dy: &[f32], d_rows: &mut [f32]) {
    dy.chunks(d_rows.len().max(1)).for_each(|part| accumulate(d_rows, part, 1.0));
}

/// Multiplies column `j` by `factors[j]`.
pub(in crate::tensor) fn scale_columns(values: &mut [f32], factors: &[f32]) {
    values.par_chunks_mut(factors.len().max(1)).with_min_len(4).for_each(|row| {
        math::simd(|| {
            for (value, factor) in row.iter_mut().zip(factors) {
                *value *= factor;
            }
        });
    });
}

/// `dm[j] += sum over rows of dy[row, j] * x[row, j] / norms[j]`, in a fixed order.
pub(in crate::tensor) fn magnitude_gradient(dy: &[f32], x: &[f32], norms: &[f32], dm: &mut [f32]) {
    const ROWS: usize = 128;
    let width = dm.len().max(1);
    let parts = dy.par_chunks(ROWS * width).zip(x.par_chunks(ROWS * width));
    let partial: Vec<Vec<f32>> = parts
        .map(|(dy, x)| {
            let mut sums = vec![0.0; width];
            for (dy, x) in dy.chunks(width).zip(x.chunks(width)) {
                sums.iter_mut().zip(dy).zip(x).for_each(|((sum, dy), x)| *sum += dy * x);
            }
            sums
        })
        .collect();
    for sums in partial {
        dm.iter_mut().zip(sums).zip(norms).for_each(|((to, sum), norm)| *to += sum / norm);
    }
}
