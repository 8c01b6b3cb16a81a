//! Layer norm (Ba, Kiros, Hinton 2016, arXiv 1607.06450).

use crate::tensor::{Graph, Mat, device, host::norm as host};

/// `(x - mean) / sqrt(variance + epsilon) * weight + bias` for each row, with `x` `[rows, width]`, `weight` and `bias`
/// `[1, width]`. Saves `x` and each row's mean and `1 / sqrt(variance + epsilon)`.
pub fn layer_norm(g: &Graph, x: &Mat, weight: &Mat, bias: &Mat, epsilon: f32) -> Mat {
    if let Some(y) = device::ops::layer_norm(g, x, weight, bias, epsilon) {
        return y;
    }
    let (y, statistics) = host::layer(x.values(), weight.values(), bias.values(), epsilon);
    let y = g.output(x.rows(), x.cols(), y, &[x, weight, bias]);
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.clone());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            let dx = gradients.buffer(&x.ghost());
            host::layer_input_gradient(x.values(), weight.values(), &statistics, &dy, dx);
        }
        if weight.needs_grad || bias.needs_grad {
            let (dw, db) = host::weight_gradients(x.values(), &statistics, &dy, x.cols());
            gradients.give(&weight.ghost(), dw);
            gradients.give(&bias.ghost(), db);
        }
    });
    y
}
