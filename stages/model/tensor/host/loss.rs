//! Softmax cross-entropy, row by row.

use rayon::prelude::*;

use super::math;

/// Returns the sum of `-log softmax(row)[target]` over all rows, and for each row the log of the softmax's denominator.
pub(in crate::tensor) fn forward(logits: &[f32], width: usize, targets: &[u32]) -> (f64, Vec<f32>) {
    let results: Vec<(f32, f32)> = logits
        .par_chunks(width)
        .zip(targets)
        .with_min_len(8)
        .map(|(row, target)| {
            let (largest, total) = math::simd!(|| {
                let largest = math::max(row);
                (largest, math::sum([row], |[x]| math::exp(x - largest)))
            });
            let log_total = largest + total.ln();
            (log_total, log_total - row[*target as usize])
        })
        .collect();
    let loss = results.iter().map(|(_, loss)| f64::from(*loss)).sum();
    (loss, results.into_iter().map(|(log_total, _)| log_total).collect())
}

/// `dx += scale * (softmax(row) - onehot(target))`.
pub(in crate::tensor) fn input_gradient(
    logits: &[f32],
    width: usize,
    targets: &[u32],
    log_totals: &[f32],
    scale: f32,
    dx: &mut [f32],
) {
    let rows = logits.par_chunks(width).zip(log_totals).zip(targets);
    dx.par_chunks_mut(width).zip(rows).with_min_len(8).for_each(|(dx, ((row, &log_total), target))| {
        let all = &mut *dx;
        math::simd!(|| {
            for (dx, x) in all.iter_mut().zip(row) {
                *dx += scale * math::exp(x - log_total);
            }
        });
        dx[*target as usize] -= scale;
    });
}
