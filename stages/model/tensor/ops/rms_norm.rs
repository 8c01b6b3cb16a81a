//! RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467).

use crate::tensor::{Graph, Mat, device, host::norm as host};

/// `x / sqrt(mean(x^2) + epsilon) * weight` for each row, with `x` `[rows, width]` and `weight` `[1, width]`. Saves `x`
/// and each row's `1 / sqrt(mean(x^2) + epsilon)`.
pub fn rms_norm(g: &Graph, x: &Mat, weight: &Mat, epsilon: f32) -> Mat {
    if let Some(y) = device::ops::rms_norm(g, x, weight, epsilon) {
        return y;
    }
    let (y, inverses) = host::rms(x.values(), weight.values(), epsilon);
    let y = g.output(x.rows(), x.cols(), y, &[x, weight]);
    let (x, weight) = (x.clone(), weight.clone());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            let dx = gradients.buffer(&x.ghost());
            host::rms_input_gradient(x.values(), weight.values(), &inverses, &dy, dx);
        }
        if weight.needs_grad {
            let dw = host::rms_weight_gradient(x.values(), &inverses, &dy, x.cols());
            gradients.give(&weight.ghost(), dw);
        }
    });
    y
}
