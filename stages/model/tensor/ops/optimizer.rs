//! AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) and the global norm of gradients.

use crate::tensor::{
    Mat,
    device::{
        DeviceMat,
        ops::{self as on_device, Queued},
    },
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
    /// The initial moments, zeros, of a parameter, where it lies.
    pub fn new(parameter: &Mat) -> Self {
        let zeros = || parameter.zeros_beside(1, parameter.count());
        Self { first: zeros(), second: zeros() }
    }
}

/// One step of the optimizer, over parameters that are passed one after the other.
pub struct Step {
    settings: AdamW,
    number: u64,
    scale: f32,
    /// Parameters on a device, which are updated together.
    queued: Vec<Queued>,
}

impl AdamW {
    /// Begins step number `step`, from 1, with gradients times `scale`, the factor of clipping.
    pub fn step(self, step: u64, scale: f32) -> Step {
        Step { settings: self, number: step, scale, queued: Vec::new() }
    }
}

impl Step {
    /// Updates `parameter` (`w`) and its moments (`m`, `v`) by `gradient` times `scale`, the factor of clipping (`g`):
    /// `m += (1 - beta1) (g - m)`, `v = beta2 v + (1 - beta2) g^2`,
    /// `w = (1 - lr decay) w - lr / (1 - beta1^t) m / (sqrt(v / (1 - beta2^t)) + epsilon)`. `t` is the step's number. On a
    /// device, this happens in [`Step::finish`].
    pub fn update(
        &mut self,
        parameter: &mut Mat,
        gradient: &Mat,
        moments: &mut Moments,
        learning_rate: f64,
        weight_decay: f64,
    ) {
        let by = self.coefficients(learning_rate, weight_decay);
        let Moments { first, second } = moments;
        if let Some(queued) = Queued::new([parameter, first, second], gradient, by) {
            self.queued.push(queued);
            return;
        }
        host::adamw(parameter.values_mut(), gradient.values(), first.values_mut(), second.values_mut(), by);
    }

    fn coefficients(&self, learning_rate: f64, weight_decay: f64) -> Coefficients {
        let AdamW { beta1, beta2, epsilon } = self.settings;
        // As in PyTorch, coefficients are computed in f64: 1 - 0.999 in f32 has a relative error of 5e-5.
        let correction1 = 1.0 - beta1.powi(self.number as i32);
        let correction2 = (1.0 - beta2.powi(self.number as i32)).sqrt();
        Coefficients {
            scale: self.scale,
            new1: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            new2: (1.0 - beta2) as f32,
            decay: (1.0 - learning_rate * weight_decay) as f32,
            step_size: (learning_rate / correction1) as f32,
            root: correction2 as f32,
            epsilon: epsilon as f32,
        }
    }

    /// Updates the parameters on a device, all in one launch.
    pub fn finish(self) {
        on_device::adamw(&self.queued);
    }
}

/// The sum of the squares of the values of each of `gradients`. Waits for a device.
pub fn squares<'a>(gradients: impl IntoIterator<Item = &'a Mat>) -> Vec<f64> {
    sums_and_item(gradients, None).0
}

/// [`squares`], and the value of `item`, `[1, 1]`. Waits for a device once.
pub fn squares_and_item<'a>(gradients: impl IntoIterator<Item = &'a Mat>, item: &Mat) -> (Vec<f64>, f32) {
    let (sums, read) = sums_and_item(gradients, Some(item));
    (sums, read.unwrap_or_else(|| item.item()))
}

fn sums_and_item<'a>(gradients: impl IntoIterator<Item = &'a Mat>, item: Option<&Mat>) -> (Vec<f64>, Option<f32>) {
    let gradients: Vec<&Mat> = gradients.into_iter().collect();
    let mats: Option<Vec<&DeviceMat>> = gradients.iter().map(|gradient| gradient.device_mat()).collect();
    match mats.as_deref() {
        Some(mats @ [_, ..]) => on_device::sums_of_squares(mats, item.and_then(Mat::device_mat)),
        _ => (gradients.iter().map(|gradient| host::sum_of_squares(gradient.values())).collect(), None),
    }
}

/// The 2-norm of all gradients together, from their [`squares`] in order.
pub fn global_norm(squares: impl IntoIterator<Item = f64>) -> f32 {
    squares.into_iter().sum::<f64>().sqrt() as f32
}
