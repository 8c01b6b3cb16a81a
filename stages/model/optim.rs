//! The optimizer over everything that trains in a model: AdamW with clipping by the global norm, as PyTorch's. Its
//! state can be saved and restored, for exact resumption.

use crate::{
    imp::Imp,
    layers::Parameter,
    tensor::{AdamW, Gradients, Mat, Moments, global_norm},
};

/// The learning rate and weight decay of a parameter in this step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Step size.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The optimizer.
pub struct Optimizer {
    settings: AdamW,
    /// Gradients are scaled down to this norm; 0 means never.
    max_grad_norm: f64,
    /// Steps taken.
    pub step: u64,
    /// The moments with their parameters' names, in the model's order.
    pub moments: Vec<(String, Moments)>,
}

impl Optimizer {
    /// An optimizer for what trains in `model` now.
    pub fn new(model: &mut Imp, settings: AdamW, max_grad_norm: f64) -> Self {
        let mut moments = Vec::new();
        model.trainable(&mut |parameter, mat| moments.push((parameter.name, Moments::new(mat.count()))));
        Self { settings, max_grad_norm, step: 0, moments }
    }

    /// One step with `gradients` in the model's order. Returns their norm before clipping.
    pub fn update(&mut self, model: &mut Imp, gradients: &[Mat], rate: impl Fn(&Parameter) -> Rate) -> f32 {
        let norm = global_norm(gradients);
        // PyTorch's clip_grad_norm_ divides by the norm plus 1e-6.
        let clip = (self.max_grad_norm / (f64::from(norm) + 1e-6)) as f32;
        let scale = if self.max_grad_norm > 0.0 { clip.min(1.0) } else { 1.0 };
        self.step += 1;
        let (step, settings) = (self.step, self.settings);
        let mut parts = self.moments.iter_mut().zip(gradients);
        model.trainable(&mut |parameter, mat| {
            if let Some(((_, moments), gradient)) = parts.next() {
                let Rate { learning_rate, weight_decay } = rate(&parameter);
                AdamW { weight_decay, ..settings }.update(mat, gradient, moments, step, learning_rate, scale);
            }
        });
        norm
    }
}

impl Imp {
    /// Every matrix that trains, with its name, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        self.llm.trainable(visit);
        self.projector.trainable(visit);
    }

    /// The gradients of everything that trains, in the order of [`Imp::trainable`].
    pub fn gradients(&mut self, from: &mut Gradients) -> Vec<Mat> {
        let mut all = Vec::new();
        self.trainable(&mut |_, mat| all.push(from.take(mat)));
        all
    }
}
