//! The optimizer of all trainable matrices of a model: AdamW with gradients clipped by their global norm, as in
//! PyTorch. Its state is public, so that a checkpoint can restore it exactly.

use crate::{
    imp::Imp,
    layers::Parameter,
    tensor::{AdamW, Gradients, Mat, Moments, global_norm},
};

/// Learning rate and weight decay of a parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The optimizer.
pub struct Optimizer {
    settings: AdamW,
    /// Gradients whose global norm is larger are scaled down to it; 0 disables clipping.
    max_grad_norm: f64,
    /// Number of steps taken.
    pub step: u64,
    /// Name and moments of each parameter, in the order of [`Imp::trainable`].
    pub moments: Vec<(String, Moments)>,
}

impl Optimizer {
    /// An optimizer for the matrices of `model` that are trainable now.
    pub fn new(model: &mut Imp, settings: AdamW, max_grad_norm: f64) -> Self {
        let mut moments = Vec::new();
        model.trainable(&mut |parameter, mat| moments.push((parameter.name, Moments::new(mat))));
        Self { settings, max_grad_norm, step: 0, moments }
    }

    /// Takes one step with `gradients` in the order of [`Imp::trainable`]. Returns their global norm before clipping.
    pub fn update(&mut self, model: &mut Imp, gradients: &[Mat], rate: impl Fn(&Parameter) -> Rate) -> f32 {
        let norm = global_norm(gradients);
        // PyTorch's clip_grad_norm_ divides by the norm plus 1e-6.
        let clip = (self.max_grad_norm / (f64::from(norm) + 1e-6)) as f32;
        let scale = if self.max_grad_norm > 0.0 { clip.min(1.0) } else { 1.0 };
        self.step += 1;
        let mut step = self.settings.step(self.step, scale);
        let mut states = self.moments.iter_mut().zip(gradients);
        model.trainable(&mut |parameter, mat| {
            if let Some(((_, moments), gradient)) = states.next() {
                let Rate { learning_rate, weight_decay } = rate(&parameter);
                step.update(mat, gradient, moments, learning_rate, weight_decay);
            }
        });
        step.finish();
        norm
    }
}

impl Imp {
    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        self.llm.trainable(visit);
        self.projector.trainable(visit);
        self.vision.trainable(visit);
    }

    /// Takes the gradients of all trainable matrices, in the order of [`Imp::trainable`].
    pub fn gradients(&mut self, from: &mut Gradients) -> Vec<Mat> {
        let mut all = Vec::new();
        self.trainable(&mut |_, mat| all.push(from.take(mat)));
        all
    }
}
