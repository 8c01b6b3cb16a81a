//! The loops of DoRA: norms of the rows of an adapted weight, and what gives them others.

use rayon::prelude::*;

use super::math;

/// The least square of a norm: a row of zeros must not be divided by its norm.
pub(crate) const LEAST: f64 = 1e-30;

/// `sqrt(squares[j] + scale * sum over r of b[j, r] * (2 wa[r, j] + scale * ba[j, r]))`, summed in f64.
pub(in crate::tensor) fn row_norms(squares: &[f32], b: &[f32], wa: &[f32], ba: &[f32], scale: f32) -> Vec<f32> {
    let (outputs, scale) = (squares.len(), f64::from(scale));
    let rank = b.len() / outputs.max(1);
    let norm = |row: usize| {
        let part = |r: usize| {
            let (at, across) = (row * rank + r, wa[r * outputs + row]);
            f64::from(b[at]) * (2.0 * f64::from(across) + scale * f64::from(ba[at]))
        };
        let square = f64::from(squares[row]) + scale * (0..rank).map(part).sum::<f64>();
        square.max(LEAST).sqrt() as f32
    };
    (0..outputs).into_par_iter().with_min_len(64).map(norm).collect()
}

/// Multiplies column `j` by `m[j] / norms[j]`.
pub(in crate::tensor) fn set_norms(values: &mut [f32], m: &[f32], norms: &[f32]) {
    let factors: &[f32] = &m.iter().zip(norms).map(|(m, norm)| m / norm).collect::<Vec<f32>>();
    values.par_chunks_mut(factors.len().max(1)).with_min_len(4).for_each(|row| {
        math::simd!(|| {
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
