//! AdamW (Loshchilov, Hutter 2019) and the global norm of gradients, fused and in a fixed order.

use rayon::prelude::*;

use crate::tensor::{Mat, ops::activation::CHUNK, host::math};

/// The settings of one parameter group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// What the optimizer remembers of one parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Moving average of the gradient.
    pub first: Vec<f32>,
    /// Moving average of its square.
    pub second: Vec<f32>,
}

impl Moments {
    /// Zeros for `length` values.
    pub fn new(length: usize) -> Self {
        Self { first: vec![0.0; length], second: vec![0.0; length] }
    }
}

impl AdamW {
    /// One step. `step` counts from 1; the gradient is multiplied by `scale` first (clipping).
    pub fn update(
        &self,
        parameter: &mut Mat,
        gradient: &[f32],
        moments: &mut Moments,
        step: u64,
        learning_rate: f64,
        scale: f32,
    ) {
        // As PyTorch: coefficients in f64, then f32 arithmetic. (1 - 0.999 in f32 would be off by 5e-5.)
        let (b2, new1, new2) = (self.beta2 as f32, (1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let correction1 = 1.0 - self.beta1.powi(step as i32);
        let correction2 = (1.0 - self.beta2.powi(step as i32)).sqrt();
        let step_size = (learning_rate / correction1) as f32;
        let decay = (1.0 - learning_rate * self.weight_decay) as f32;
        let (root, epsilon) = (correction2 as f32, self.epsilon as f32);
        parameter
            .values_mut()
            .par_chunks_mut(CHUNK)
            .zip(gradient.par_chunks(CHUNK))
            .zip(moments.first.par_chunks_mut(CHUNK))
            .zip(moments.second.par_chunks_mut(CHUNK))
            .for_each(|(((w, g), m), v)| {
                math::simd(|| {
                    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                        let g = g * scale;
                        *m += (g - *m) * new1;
                        *v = *v * b2 + g * g * new2;
                        *w = *w * decay - step_size * *m / (v.sqrt() / root + epsilon);
                    }
                });
            });
    }
}

/// The 2-norm of all values of all gradients.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a [f32]>) -> f32 {
    let squares: f64 = gradients
        .into_iter()
        .map(|gradient| {
            let partial: Vec<f64> = gradient
                .par_chunks(CHUNK)
                .map(|part| f64::from(math::simd(|| math::sum(part.len(), |i| part[i] * part[i]))))
                .collect();
            partial.into_iter().sum::<f64>()
        })
        .sum();
    squares.sqrt() as f32
}
