//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and the global norm of gradients.

use crate::tensor::{
    Mat,
    host::optimizer::{self as host, Coefficients},
};

/// Hyperparameters of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay rate of the first moment.
    pub beta1: f64,
    /// Decay rate of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// The optimizer's state of one parameter.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Moving average of the gradient: `[1, count]`.
    pub first: Mat,
    /// Moving average of the squared gradient: `[1, count]`.
    pub second: Mat,
}

impl Moments {
    /// The initial moments, zeros, of a parameter with `count` values.
    pub fn new(count: usize) -> Self {
        Self { first: Mat::zeros(1, count), second: Mat::zeros(1, count) }
    }
}

impl AdamW {
    /// Updates `parameter` (`w`) and its moments (`m`, `v`) by `gradient` times `scale`, the factor of clipping (`g`):
    /// `m += (1 - beta1) (g - m)`, `v = beta2 v + (1 - beta2) g^2`,
    /// `w = (1 - lr decay) w - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)`. `step` is `t`, from 1.
    pub fn update(
        &self,
        parameter: &mut Mat,
        gradient: &Mat,
        moments: &mut Moments,
        step: u64,
        learning_rate: f64,
        scale: f32,
    ) {
        // As in PyTorch, coefficients are computed in f64: 1 - 0.999 in f32 has a relative error of 5e-5.
        let correction1 = 1.0 - self.beta1.powi(step as i32);
        let correction2 = (1.0 - self.beta2.powi(step as i32)).sqrt();
        let by = Coefficients {
            scale,
            new1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            new2: (1.0 - self.beta2) as f32,
            decay: (1.0 - learning_rate * self.weight_decay) as f32,
            step_size: (learning_rate / correction1) as f32,
            root: correction2 as f32,
            epsilon: self.epsilon as f32,
        };
        let Moments { first, second } = moments;
        host::adamw(parameter.values_mut(), gradient.values(), first.values_mut(), second.values_mut(), by);
    }
}

/// The 2-norm of all values of all gradients together.
pub fn global_norm<'a>(gradients: impl IntoIterator<Item = &'a Mat>) -> f32 {
    let squares: f64 = gradients.into_iter().map(|gradient| host::sum_of_squares(gradient.values())).sum();
    squares.sqrt() as f32
}
