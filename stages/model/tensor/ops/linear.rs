//! The product of a linear layer.

use crate::tensor::{
    Graph, Mat, Weight,
    host::linear::{self as host, Shape},
};

/// `x W^T + b`, `[rows, out]`, with `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[1, out]`. Saves `x` if the weight
/// is trainable. The backward pass does not compute gradients of frozen matrices.
///
/// # Panics
/// If the widths of `x` and `weight` differ, which is a bug in the caller.
pub fn linear(g: &Graph, x: &Mat, weight: &Weight, bias: Option<&Mat>) -> Mat {
    assert_eq!(x.cols(), weight.inputs(), "width of the input and of the weight");
    let shape = Shape { rows: x.rows(), inputs: x.cols(), outputs: weight.outputs() };
    let y = host::forward(x.values(), weight.host(), bias.map(Mat::values), shape);
    let inputs: Vec<&Mat> = [Some(x), bias, weight.dense()].into_iter().flatten().collect();
    let y = g.output(shape.rows, shape.outputs, y, &inputs);
    let dx = x.needs_grad.then(|| x.ghost());
    // Only the gradient of a trainable weight needs the input.
    let trained = weight.trained().map(|mat| (mat.ghost(), x.clone()));
    let (weight, bias) = (weight.clone(), bias.filter(|bias| bias.needs_grad).map(Mat::ghost));
    g.record(&y, move |dy, gradients| {
        if let Some(dx) = dx {
            host::input_gradient(&dy, weight.host(), shape, gradients.buffer(&dx));
        }
        if let Some((dw, x)) = trained {
            host::weight_gradient(&dy, x.values(), shape, gradients.buffer(&dw));
        }
        if let Some(bias) = bias {
            host::bias_gradient(&dy, gradients.buffer(&bias));
        }
    });
    y
}
