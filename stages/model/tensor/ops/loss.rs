//! Softmax cross-entropy.

use rayon::prelude::*;

use crate::tensor::{Graph, Mat, host::math};

/// The label of a position that is not learned.
pub const IGNORE: i32 = -100;

/// The sum over rows of `-log softmax(logits)[target]`, divided by `count`: a `[1, 1]` matrix.
/// `count` is the number of labelled positions of the whole batch, of which these rows may be a part.
pub fn cross_entropy(g: &Graph, logits: &Mat, targets: Vec<u32>, count: usize) -> Mat {
    let (width, scale) = (logits.cols(), 1.0 / count.max(1) as f32);
    let lines: Vec<(f32, f32)> = logits
        .values()
        .par_chunks(width)
        .zip(&targets)
        .with_min_len(8)
        .map(|(row, target)| {
            let (largest, total) = math::simd(|| {
                let largest = math::max(row);
                (largest, math::sum(width, |i| math::exp(row[i] - largest)))
            });
            let log_total = largest + total.ln();
            (log_total, log_total - row[*target as usize])
        })
        .collect();
    let loss: f64 = lines.iter().map(|(_, loss)| f64::from(*loss)).sum();
    let loss = g.output(1, 1, vec![(loss * f64::from(scale)) as f32], &[logits]);
    let logits = logits.clone();
    g.record(&loss, move |dy, gradients| {
        let scale = scale * dy[0];
        let dx = gradients.buffer(&logits.ghost());
        dx.par_chunks_mut(width)
            .zip(logits.values().par_chunks(width))
            .zip(&lines)
            .zip(&targets)
            .with_min_len(8)
            .for_each(|(((dx, row), (log_total, _)), target)| {
                math::simd(|| {
                    for (dx, x) in dx.iter_mut().zip(row) {
                        *dx += scale * math::exp(x - log_total);
                    }
                });
                dx[*target as usize] -= scale;
            });
    });
    loss
}
