//! AdamW's update, and the sum of squares in a fixed order.

use rayon::prelude::*;

use super::{math, pointwise::CHUNK};

/// The coefficients of one update.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Coefficients {
    /// Factor on the gradient, for clipping.
    pub(in crate::tensor) scale: f32,
    /// `1 - beta1`.
    pub(in crate::tensor) new1: f32,
    pub(in crate::tensor) beta2: f32,
    /// `1 - beta2`.
    pub(in crate::tensor) new2: f32,
    /// Factor on the parameter: `1 - learning_rate * weight_decay`.
    pub(in crate::tensor) decay: f32,
    /// `learning_rate / (1 - beta1^step)`.
    pub(in crate::tensor) step_size: f32,
    /// `sqrt(1 - beta2^step)`.
    pub(in crate::tensor) root: f32,
    pub(in crate::tensor) epsilon: f32,
}

/// Updates the parameter `w` and its two moments by the gradient `g`, see [`crate::tensor::Step::update`].
pub(in crate::tensor) fn adamw(w: &mut [f32], g: &[f32], first: &mut [f32], second: &mut [f32], by: Coefficients) {
    let Coefficients { scale, new1, beta2, new2, decay, step_size, root, epsilon } = by;
    w.par_chunks_mut(CHUNK)
        .zip(g.par_chunks(CHUNK))
        .zip(first.par_chunks_mut(CHUNK))
        .zip(second.par_chunks_mut(CHUNK))
        .for_each(|(((w, g), m), v)| {
            math::simd!(|| {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m.iter_mut()).zip(v.iter_mut()) {
                    let g = g * scale;
                    *m += (g - *m) * new1;
                    *v = *v * beta2 + g * g * new2;
                    *w = *w * decay - step_size * *m / (v.sqrt() / root + epsilon);
                }
            });
        });
}

/// The sum of the squares of all values.
pub(in crate::tensor) fn sum_of_squares(values: &[f32]) -> f64 {
    let partial: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|part| f64::from(math::simd!(|| math::sum([part], |[value]| value * value))))
        .collect();
    partial.into_iter().sum()
}
