//! Normalisation over the width of a row: layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang, Sennrich 2019).

use rayon::prelude::*;

use crate::tensor::{Graph, Mat, host::math};

/// Rows whose partial sums for the weights are added up before the others': fixed, so that the sum is.
const ROWS: usize = 64;

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias`, with `weight` and `bias` `[1, width]`.
pub fn layer_norm(g: &Graph, x: &Mat, weight: &Mat, bias: &Mat, epsilon: f32) -> Mat {
    let width = x.cols();
    let mut y = vec![0.0; x.values().len()];
    let mut statistics = vec![(0.0_f32, 0.0_f32); x.rows()];
    let (w, b) = (weight.values(), bias.values());
    y.par_chunks_mut(width).zip(x.values().par_chunks(width)).zip(&mut statistics).with_min_len(ROWS).for_each(
        |((y, x), statistics)| {
            *statistics = math::simd(|| {
                let mean = math::sum(width, |i| x[i]) / width as f32;
                let variance = math::sum(width, |i| (x[i] - mean) * (x[i] - mean)) / width as f32;
                let inverse = 1.0 / (variance + epsilon).sqrt();
                for i in 0..width {
                    y[i] = (x[i] - mean) * inverse * w[i] + b[i];
                }
                (mean, inverse)
            });
        },
    );
    let y = g.output(x.rows(), width, y, &[x, weight, bias]);
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            input_gradient(gradients.buffer(&x.ghost()), &x, &dy, weight.values(), &statistics);
        }
        if weight.needs_grad || bias.needs_grad {
            let (dw, db) = weight_gradients(&x, &dy, &statistics);
            for (mat, partial) in [(&weight, dw), (&bias, db)] {
                for (to, from) in gradients.buffer(&mat.ghost()).iter_mut().zip(partial) {
                    *to += from;
                }
            }
        }
    });
    y
}

fn input_gradient(dx: &mut [f32], x: &Mat, dy: &[f32], w: &[f32], statistics: &[(f32, f32)]) {
    let width = x.cols();
    dx.par_chunks_mut(width)
        .zip(x.values().par_chunks(width))
        .zip(dy.par_chunks(width))
        .zip(statistics)
        .with_min_len(ROWS)
        .for_each(|(((dx, x), dy), &(mean, inverse))| {
            math::simd(|| {
                let along = math::sum(width, |i| dy[i] * w[i]) / width as f32;
                let across = math::sum(width, |i| dy[i] * w[i] * (x[i] - mean)) * inverse * inverse / width as f32;
                for i in 0..width {
                    dx[i] += inverse * (dy[i] * w[i] - along - (x[i] - mean) * across);
                }
            });
        });
}

fn weight_gradients(x: &Mat, dy: &[f32], statistics: &[(f32, f32)]) -> (Vec<f32>, Vec<f32>) {
    let width = x.cols();
    let partial: Vec<(Vec<f32>, Vec<f32>)> = x
        .values()
        .par_chunks(ROWS * width)
        .zip(dy.par_chunks(ROWS * width))
        .zip(statistics.par_chunks(ROWS))
        .map(|((x, dy), statistics)| {
            let (mut dw, mut db) = (vec![0.0; width], vec![0.0; width]);
            for ((x, dy), (mean, inverse)) in x.chunks(width).zip(dy.chunks(width)).zip(statistics) {
                for i in 0..width {
                    dw[i] += dy[i] * (x[i] - mean) * inverse;
                    db[i] += dy[i];
                }
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

/// `x / sqrt(mean(x^2) + epsilon) * weight`, with `weight` `[1, width]`.
pub fn rms_norm(g: &Graph, x: &Mat, weight: &Mat, epsilon: f32) -> Mat {
    let width = x.cols();
    let mut y = vec![0.0; x.values().len()];
    let mut inverses = vec![0.0_f32; x.rows()];
    let w = weight.values();
    y.par_chunks_mut(width).zip(x.values().par_chunks(width)).zip(&mut inverses).with_min_len(ROWS).for_each(
        |((y, x), inverse)| {
            *inverse = math::simd(|| {
                let inverse = 1.0 / (math::sum(width, |i| x[i] * x[i]) / width as f32 + epsilon).sqrt();
                for i in 0..width {
                    y[i] = x[i] * inverse * w[i];
                }
                inverse
            });
        },
    );
    let y = g.output(x.rows(), width, y, &[x, weight]);
    let (x, weight) = (x.clone(), weight.clone());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            rms_input_gradient(gradients.buffer(&x.ghost()), &x, &dy, weight.values(), &inverses);
        }
        if weight.needs_grad {
            // The scale's gradient is layer norm's with a mean of zero.
            let statistics: Vec<(f32, f32)> = inverses.iter().map(|inverse| (0.0, *inverse)).collect();
            let (dw, _) = weight_gradients(&x, &dy, &statistics);
            gradients.buffer(&weight.ghost()).iter_mut().zip(dw).for_each(|(to, from)| *to += from);
        }
    });
    y
}

fn rms_input_gradient(dx: &mut [f32], x: &Mat, dy: &[f32], w: &[f32], inverses: &[f32]) {
    let width = x.cols();
    let rows = x.values().par_chunks(width).zip(dy.par_chunks(width)).zip(inverses);
    dx.par_chunks_mut(width).zip(rows).with_min_len(ROWS).for_each(|(dx, ((x, dy), &inverse))| {
        math::simd(|| {
            let across = math::sum(width, |i| dy[i] * w[i] * x[i]) * inverse * inverse / width as f32;
            for i in 0..width {
                dx[i] += inverse * (dy[i] * w[i] - x[i] * across);
            }
        });
    });
}
