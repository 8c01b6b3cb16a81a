//! The products of linear layers and of LoRA adapters; their documentation is in [`super::super::linear`].

use super::{
    super::linear::{Shape, Values},
    kernel::Kernel,
    pack::Operand,
    product::{Output, Right, product},
};

const ADD: Output<'_> = Output { alpha: 1.0, add: true, bias: None };

fn scaled(alpha: f32) -> Output<'static> {
    Output { alpha, ..ADD }
}

/// A weight `[outputs, inputs]` as the right operand whose lanes are its outputs (`along`) or its inputs.
fn right(weight: Values<'_>, shape: Shape, along: bool) -> Right<'_> {
    let Shape { inputs, outputs, .. } = shape;
    match weight {
        Values::Plain(values) if along => Right::Plain(Operand::along(values, outputs, inputs)),
        Values::Plain(values) => Right::Plain(Operand::across(values, inputs, outputs)),
        Values::Stored(weight) => Right::Stored { weight, along },
    }
}

pub(in super::super) fn forward(
    kernel: Kernel,
    x: &[f32],
    weight: Values<'_>,
    bias: Option<&[f32]>,
    shape: Shape,
) -> Vec<f32> {
    let mut y = vec![0.0; shape.rows * shape.outputs];
    let x = Operand::along(x, shape.rows, shape.inputs);
    product(kernel, x, right(weight, shape, true), &mut y, Output { bias, add: false, ..ADD });
    y
}

pub(in super::super) fn input_gradient(kernel: Kernel, dy: &[f32], weight: Values<'_>, shape: Shape, dx: &mut [f32]) {
    let dy = Operand::along(dy, shape.rows, shape.outputs);
    product(kernel, dy, right(weight, shape, false), dx, ADD);
}

pub(in super::super) fn weight_gradient(kernel: Kernel, dy: &[f32], x: &[f32], shape: Shape, dw: &mut [f32]) {
    let dy = Operand::across(dy, shape.outputs, shape.rows);
    product(kernel, dy, Right::Plain(Operand::across(x, shape.inputs, shape.rows)), dw, ADD);
}

pub(in super::super) fn add_low_rank(kernel: Kernel, low: &[f32], b: &[f32], scale: f32, shape: Shape, y: &mut [f32]) {
    let low = Operand::along(low, shape.rows, shape.inputs);
    product(kernel, low, Right::Plain(Operand::along(b, shape.outputs, shape.inputs)), y, scaled(scale));
}

pub(in super::super) fn low_gradient(
    kernel: Kernel,
    dy: &[f32],
    b: &[f32],
    scale: f32,
    shape: Shape,
    d_low: &mut [f32],
) {
    let dy = Operand::along(dy, shape.rows, shape.outputs);
    product(kernel, dy, Right::Plain(Operand::across(b, shape.inputs, shape.outputs)), d_low, scaled(scale));
}

pub(in super::super) fn b_gradient(kernel: Kernel, dy: &[f32], low: &[f32], scale: f32, shape: Shape, db: &mut [f32]) {
    let dy = Operand::across(dy, shape.outputs, shape.rows);
    product(kernel, dy, Right::Plain(Operand::across(low, shape.inputs, shape.rows)), db, scaled(scale));
}

#[cfg(test)]
mod tests {
    use super::{super::super::linear as plain, *};
    use crate::precision::Precision;

    const SHAPE: Shape = Shape { rows: 19, inputs: 70, outputs: 45, precision: Precision::Bf16 };

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|index| ((index * 37 + seed * 101) % 211) as f32 / 100.0 - 1.05).collect()
    }

    /// Both round operands to bf16; sums of up to 70 products in another order differ by a few units of 6e-8.
    fn check(what: &str, one: &[f32], other: &[f32]) {
        let largest = other.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        for (one, other) in one.iter().zip(other) {
            assert!((one - other).abs() <= 1e-6 * largest, "{what}: {one} and {other}");
        }
    }

    #[test]
    fn each_is_what_it_is_without_the_instruction() {
        let kernel = Kernel::Portable;
        let Shape { rows, inputs, outputs, .. } = SHAPE;
        let (x, w, bias) = (values(rows * inputs, 1), values(outputs * inputs, 2), values(outputs, 3));
        let (y, weight) = (values(rows * outputs, 4), Values::Plain(&w));
        for bias in [None, Some(bias.as_slice())] {
            let ours = forward(kernel, &x, weight, bias, SHAPE);
            check("forward", &ours, &plain::forward(&x, weight, bias, SHAPE));
        }
        let both = |start: &[f32], ours: &dyn Fn(&mut [f32]), theirs: &dyn Fn(&mut [f32]), what: &str| {
            let mut of = [start.to_vec(), start.to_vec()];
            ours(&mut of[0]);
            theirs(&mut of[1]);
            assert!(of[0] != start);
            check(what, &of[0], &of[1]);
        };
        let gradient = |dx: &mut [f32]| input_gradient(kernel, &y, weight, SHAPE, dx);
        both(&x, &gradient, &|dx| plain::input_gradient(&y, weight, SHAPE, dx), "input gradient");
        let gradient = |dw: &mut [f32]| weight_gradient(kernel, &y, &x, SHAPE, dw);
        both(&w, &gradient, &|dw| plain::weight_gradient(&y, &x, SHAPE, dw), "weight gradient");
        let low_rank = |to: &mut [f32]| add_low_rank(kernel, &x, &w, 0.7, SHAPE, to);
        both(&y, &low_rank, &|to| plain::add_low_rank(&x, &w, 0.7, SHAPE, to), "low rank");
        let gradient = |to: &mut [f32]| low_gradient(kernel, &y, &w, 0.7, SHAPE, to);
        both(&x, &gradient, &|to| plain::low_gradient(&y, &w, 0.7, SHAPE, to), "gradient of the low rank");
        let gradient = |to: &mut [f32]| b_gradient(kernel, &y, &x, 0.7, SHAPE, to);
        both(&w, &gradient, &|to| plain::b_gradient(&y, &x, 0.7, SHAPE, to), "gradient of B");
    }
}
