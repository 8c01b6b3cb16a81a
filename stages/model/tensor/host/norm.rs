//! Layer norm and RMS norm, row by row.

use rayon::prelude::*;

use super::{fresh::zeros, math};

/// Rows per partial sum of the weights' gradients; fixed, so that the order of the sum is.
const ROWS: usize = 64;

/// Returns `(x - mean) / sqrt(variance + epsilon) * w + b` for each row, and the row's mean and
/// `1 / sqrt(variance + epsilon)`.
pub(in crate::tensor) fn layer(x: &[f32], w: &[f32], b: &[f32], epsilon: f32) -> (Vec<f32>, Vec<(f32, f32)>) {
    let width = w.len();
    let mut y = zeros(x.len());
    let mut statistics = vec![(0.0_f32, 0.0_f32); x.len() / width];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(&mut statistics).with_min_len(ROWS).for_each(
        |((y, x), statistics)| {
            *statistics = math::simd!(|| {
                let mean = math::sum([x], |[x]| x) / width as f32;
                let variance = math::sum([x], |[x]| (x - mean) * (x - mean)) / width as f32;
                let inverse = 1.0 / (variance + epsilon).sqrt();
                for ((y, x), (w, b)) in y.iter_mut().zip(x).zip(w.iter().zip(b)) {
                    *y = (x - mean) * inverse * w + b;
                }
                (mean, inverse)
            });
        },
    );
    (y, statistics)
}

/// Adds the gradient of [`layer`]'s input to `dx`.
pub(in crate::tensor) fn layer_input_gradient(
    x: &[f32],
    w: &[f32],
    statistics: &[(f32, f32)],
    dy: &[f32],
    dx: &mut [f32],
) {
    let width = w.len();
    let rows = x.par_chunks(width).zip(dy.par_chunks(width)).zip(statistics);
    dx.par_chunks_mut(width).zip(rows).with_min_len(ROWS).for_each(|(dx, ((x, dy), &(mean, inverse)))| {
        math::simd!(|| {
            let along = math::sum([dy, w], |[dy, w]| dy * w) / width as f32;
            let across = math::sum([dy, w, x], |[dy, w, x]| dy * w * (x - mean)) * inverse * inverse / width as f32;
            for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(w)) {
                *dx += inverse * (dy * w - along - (x - mean) * across);
            }
        });
    });
}

/// Returns the gradients of [`layer`]'s weight and bias.
pub(in crate::tensor) fn weight_gradients(
    x: &[f32],
    statistics: &[(f32, f32)],
    dy: &[f32],
    width: usize,
) -> (Vec<f32>, Vec<f32>) {
    let partial: Vec<(Vec<f32>, Vec<f32>)> = x
        .par_chunks(ROWS * width)
        .zip(dy.par_chunks(ROWS * width))
        .zip(statistics.par_chunks(ROWS))
        .map(|((x, dy), statistics)| {
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            for ((x, dy), (mean, inverse)) in x.chunks(width).zip(dy.chunks(width)).zip(statistics) {
                let (dw, db) = (&mut *dw, &mut *db);
                math::simd!(|| {
                    for ((dw, db), (dy, x)) in dw.iter_mut().zip(db.iter_mut()).zip(dy.iter().zip(x)) {
                        *dw += dy * (x - mean) * inverse;
                        *db += dy;
                    }
                });
            }
            (dw, db)
        })
        .collect();
    partial.into_iter().fold((vec![0.0; width], vec![0.0; width]), |(mut dw, mut db), (pw, pb)| {
        dw.iter_mut().zip(pw).for_each(|(to, from)| *to += from);
        db.iter_mut().zip(pb).for_each(|(to, from)| *to += from);
        (dw, db)
    })
}

/// Returns `x / sqrt(mean(x^2) + epsilon) * w` for each row, and the row's `1 / sqrt(mean(x^2) + epsilon)`.
pub(in crate::tensor) fn rms(x: &[f32], w: &[f32], epsilon: f32) -> (Vec<f32>, Vec<f32>) {
    let width = w.len();
    let mut y = zeros(x.len());
    let mut inverses = vec![0.0_f32; x.len() / width];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).zip(&mut inverses).with_min_len(ROWS).for_each(
        |((y, x), inverse)| {
            *inverse = math::simd!(|| {
                let inverse = 1.0 / (math::sum([x], |[x]| x * x) / width as f32 + epsilon).sqrt();
                for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                    *y = x * inverse * w;
                }
                inverse
            });
        },
    );
    (y, inverses)
}

/// Adds the gradient of [`rms`]'s input to `dx`.
pub(in crate::tensor) fn rms_input_gradient(x: &[f32], w: &[f32], inverses: &[f32], dy: &[f32], dx: &mut [f32]) {
    let width = w.len();
    let rows = x.par_chunks(width).zip(dy.par_chunks(width)).zip(inverses);
    dx.par_chunks_mut(width).zip(rows).with_min_len(ROWS).for_each(|(dx, ((x, dy), &inverse))| {
        math::simd!(|| {
            let across = math::sum([dy, w, x], |[dy, w, x]| dy * w * x) * inverse * inverse / width as f32;
            for ((dx, x), (dy, w)) in dx.iter_mut().zip(x).zip(dy.iter().zip(w)) {
                *dx += inverse * (dy * w - x * across);
            }
        });
    });
}

/// Returns the gradient of [`rms`]'s weight, which is that of [`layer`]'s weight with a mean of zero.
pub(in crate::tensor) fn rms_weight_gradient(x: &[f32], inverses: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let statistics: Vec<(f32, f32)> = inverses.iter().map(|inverse| (0.0, *inverse)).collect();
    weight_gradients(x, &statistics, dy, width).0
}
