//! The optimizer of all trainable matrices of a model: AdamW with gradients clipped by their global norm, as in
//! PyTorch. Its state is public, so that a checkpoint can restore it exactly.

use crate::{
    imp::Imp,
    layers::Parameter,
    tensor::{AdamW, Gradients, Graph, Mat, Moments, global_norm, squares, squares_and_item},
};

/// Learning rate and weight decay of a parameter in one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The optimizer of a model's parameters, or of the share of them that one of several workers updates.
pub struct Optimizer {
    settings: AdamW,
    /// Gradients whose global norm is larger are scaled down to it; 0 disables clipping.
    max_grad_norm: f64,
    /// Number of steps taken.
    pub step: u64,
    /// The parameters that it updates: their numbers in [`Imp::trainable`], in order.
    pub share: Vec<usize>,
    /// Name and moments of each parameter of the share, in the order of [`Imp::trainable`].
    pub moments: Vec<(String, Moments)>,
}

impl Optimizer {
    /// An optimizer for the matrices of `model` that are trainable now.
    pub fn new(model: &mut Imp, settings: AdamW, max_grad_norm: f64) -> Self {
        let mut count = 0;
        model.trainable(&mut |_, _| count += 1);
        Self::of_share(model, settings, max_grad_norm, (0..count).collect())
    }

    /// An optimizer for those of them whose numbers are in `share`.
    pub fn of_share(model: &mut Imp, settings: AdamW, max_grad_norm: f64, share: Vec<usize>) -> Self {
        let mut moments = Vec::new();
        model.visit(&share, &mut |parameter, mat| moments.push((parameter.name, Moments::new(mat))));
        Self { settings, max_grad_norm, step: 0, share, moments }
    }

    /// Takes one step with `gradients` of all parameters, in the order of [`Imp::trainable`]. Returns their global norm before
    /// clipping.
    pub fn update(&mut self, model: &mut Imp, gradients: &[Mat], rate: impl Fn(&Parameter) -> Rate) -> f32 {
        let norm = global_norm(squares(gradients));
        self.update_share(model, gradients, norm, rate);
        norm
    }

    /// [`Optimizer::update`], for gradients of `loss`, `[1, 1]`. Returns its value, and the global norm. Waits for a device once.
    pub fn update_and_read(
        &mut self,
        model: &mut Imp,
        gradients: &[Mat],
        loss: &Mat,
        rate: impl Fn(&Parameter) -> Rate,
    ) -> (f32, f32) {
        let (squares, loss) = squares_and_item(gradients, loss);
        let norm = global_norm(squares);
        self.update_share(model, gradients, norm, rate);
        (loss, norm)
    }

    /// Takes one step with the `gradients` of its share, where the global norm of all of them is `norm`.
    pub fn update_share(&mut self, model: &mut Imp, gradients: &[Mat], norm: f32, rate: impl Fn(&Parameter) -> Rate) {
        // PyTorch's clip_grad_norm_ divides by the norm plus 1e-6.
        let clip = (self.max_grad_norm / (f64::from(norm) + 1e-6)) as f32;
        let scale = if self.max_grad_norm > 0.0 { clip.min(1.0) } else { 1.0 };
        self.step += 1;
        let mut step = self.settings.step(self.step, scale);
        let mut states = self.moments.iter_mut().zip(gradients);
        model.visit(&self.share, &mut |parameter, mat| {
            if let Some(((_, moments), gradient)) = states.next() {
                let Rate { learning_rate, weight_decay } = rate(&parameter);
                step.update(mat, gradient, moments, learning_rate, weight_decay);
            }
        });
        step.finish();
    }
}

impl Imp {
    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        self.llm.trainable(visit);
        self.projector.trainable(visit);
        self.vision.trainable(visit);
    }

    /// Visits the trainable matrices with these numbers in [`Imp::trainable`], which are in order.
    pub fn visit(&mut self, numbers: &[usize], visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        let (mut number, mut wanted) = (0, numbers.iter().peekable());
        self.trainable(&mut |parameter, mat| {
            if wanted.next_if_eq(&&number).is_some() {
                visit(parameter, mat);
            }
            number += 1;
        });
    }

    /// Runs the backward pass from `loss`, which `graph` has recorded. Passes on the gradients of all trainable matrices with their
    /// numbers in [`Imp::trainable`], several at a time, those of a block as soon as it is done.
    pub fn backward(&mut self, graph: &Graph, loss: &Mat, give: impl FnMut(Vec<(usize, Mat)>) + 'static) {
        let mut all = Vec::new();
        self.trainable(&mut |_, mat| all.push(mat.clone()));
        graph.backward_to(loss, &all, give);
    }

    /// Takes the gradients of all trainable matrices, in the order of [`Imp::trainable`].
    pub fn gradients(&mut self, from: &mut Gradients) -> Vec<Mat> {
        let mut all = Vec::new();
        self.trainable(&mut |_, mat| all.push(from.take(mat)));
        all
    }
}
