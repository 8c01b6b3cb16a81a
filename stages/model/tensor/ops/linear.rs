//! The product of a linear layer.

use crate::tensor::{
    Graph, Mat, Place, Weight,
    device::{self, Type, stored_as},
    host::linear::{self as host, Shape},
};

/// `x W^T + b`, `[rows, out]`, with `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[1, out]`. Saves `x` if the weight
/// is trainable. The backward pass does not compute gradients of frozen matrices.
///
/// # Panics
/// If the widths of `x` and `weight` differ, which is a bug in the caller.
pub fn linear(g: &Graph, x: &Mat, weight: &Weight, bias: Option<&Mat>) -> Mat {
    compute(g, x, weight, bias, None)
}

/// Like [`linear`], with the output in f32 on every device: for logits, whose differences decide.
pub fn linear_in_f32(g: &Graph, x: &Mat, weight: &Weight, bias: Option<&Mat>) -> Mat {
    compute(g, x, weight, bias, Some(Type::F32))
}

/// [`linear`] of the same input with each weight and bias, with the same results. On the CPU it takes less time than one after the other.
/// `finish` makes of each output, given its index, what is returned, before the next is recorded.
///
/// # Panics
/// If the widths of `x` and a weight differ, which is a bug in the caller.
pub fn linear_each<const N: usize>(
    g: &Graph,
    x: &Mat,
    layers: [(&Weight, Option<&Mat>); N],
    mut finish: impl FnMut(usize, Mat) -> Mat,
) -> [Mat; N] {
    let place = x.place();
    if place.device.is_some() || layers.iter().any(|(weight, _)| weight.place() != place) {
        return std::array::from_fn(|index| {
            let (weight, bias) = layers[index];
            finish(index, linear(g, x, weight, bias))
        });
    }
    let shapes = layers.map(|(weight, _)| shape(x, weight));
    let factors = std::array::from_fn(|index| {
        let (weight, bias) = layers[index];
        (weight.host(), bias.map(Mat::values), shapes[index])
    });
    let mut ys: [_; N] = host::forward_each(x.values(), factors);
    std::array::from_fn(|index| {
        finish(index, recorded(g, x, layers[index], shapes[index], std::mem::take(&mut ys[index])))
    })
}

fn compute(g: &Graph, x: &Mat, weight: &Weight, bias: Option<&Mat>, out: Option<Type>) -> Mat {
    let place = weight.place();
    let x = &moved(x, &place);
    let shape = shape(x, weight);
    if let Some(operand) = weight.operand() {
        let out = out.unwrap_or(stored_as(place.precision));
        let weight_and_trained = (operand, weight.trained());
        if let Some(y) = device::ops::linear(g, x, weight_and_trained, bias, shape.outputs, out) {
            return y;
        }
    }
    let y = host::forward(x.values(), weight.host(), bias.map(Mat::values), shape);
    recorded(g, x, (weight, bias), shape, y)
}

fn shape(x: &Mat, weight: &Weight) -> Shape {
    assert_eq!(x.cols(), weight.inputs(), "width of the input and of the weight");
    Shape { rows: x.rows(), inputs: x.cols(), outputs: weight.outputs(), precision: weight.place().precision }
}

/// The output from its values in host memory.
fn recorded(g: &Graph, x: &Mat, (weight, bias): (&Weight, Option<&Mat>), shape: Shape, y: Vec<f32>) -> Mat {
    let inputs: Vec<&Mat> = [Some(x), bias, weight.dense()].into_iter().flatten().collect();
    let y = g.output(shape.rows, shape.outputs, y, &inputs);
    let dx = x.needs_grad.then(|| x.ghost());
    // Only the gradient of a trainable weight needs the input.
    let trained = weight.trained().map(|mat| (mat.ghost(), x.clone()));
    let (weight, bias) = (weight.clone(), bias.filter(|bias| bias.needs_grad).map(Mat::ghost));
    g.record(&y, move |dy, gradients| {
        if let Some(dx) = dx {
            gradients.sum(&dx, |dx| host::input_gradient(&dy, weight.host(), shape, dx));
        }
        if let Some((dw, x)) = trained {
            gradients.sum(&dw, |dw| host::weight_gradient(&dy, x.values(), shape, dw));
        }
        if let Some(bias) = bias {
            host::bias_gradient(&dy, gradients.buffer(&bias));
        }
    });
    y
}

/// `x` where the weight lies. The rows of images and features enter the network through a linear layer, so only there a
/// matrix may come from elsewhere.
fn moved(x: &Mat, place: &Place) -> Mat {
    let from = x.place();
    assert!(from.device == place.device || !x.needs_grad, "a matrix that needs a gradient lies where its weight lies");
    x.to(place)
}
