//! Sums of buffers, value by value.

use rayon::prelude::*;

use super::math;

/// Values that one thread works on at a time.
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

/// Adds `rows` to every run of values in `to` that is as long as `rows`.
pub(in crate::tensor) fn add_repeated(to: &mut [f32], rows: &[f32]) {
    to.chunks_mut(rows.len().max(1)).for_each(|part| accumulate(part, rows, 1.0));
}

/// The gradient of `rows` in [`add_repeated`]: the sum of those runs, in their order.
pub(in crate::tensor) fn add_repeated_gradient(dy: &[f32], d_rows: &mut [f32]) {
    dy.chunks(d_rows.len().max(1)).for_each(|part| accumulate(d_rows, part, 1.0));
}
