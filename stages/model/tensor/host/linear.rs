//! The products of linear layers and LoRA adapters. Their operands are rounded to the shape's precision.
//!
//! In f32 the `gemm` crate computes those that it computes faster: small ones, gradients with weights in f32, and those of adapters.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    fresh::zeros,
    gemm::{Product, View},
    gemv::{FEW_ROWS, few_rows},
    product::{Operand, Output, Right, add_product, new_product, new_products, product},
    round::operand,
};
use crate::{precision::Precision, tensor::Stored};

/// The shape of a linear layer: `x` `[rows, inputs]`, weight `[outputs, inputs]`, `y` `[rows, outputs]`.
#[derive(Clone, Copy)]
pub(in crate::tensor) struct Shape {
    pub(in crate::tensor) rows: usize,
    pub(in crate::tensor) inputs: usize,
    pub(in crate::tensor) outputs: usize,
    pub(in crate::tensor) precision: Precision,
}

impl Shape {
    /// Whether the forward pass packs its operands. Whether the weight is stored has no say, so that both have the same sums.
    fn packs(self) -> bool {
        let small = self.precision == Precision::F32 && self.inputs * self.outputs <= SMALL;
        self.rows > FEW_ROWS && !small
    }
}

/// The values of a weight.
#[derive(Clone, Copy)]
pub(in crate::tensor) enum Values<'a> {
    /// In f32, used without a copy.
    Plain(&'a [f32]),
    /// In a file's encoding, decoded tile by tile.
    Stored(&'a Stored),
}

impl<'a> Values<'a> {
    /// A weight `[outputs, inputs]` as the right operand whose lanes are its outputs (`along`) or its inputs.
    fn right(self, shape: Shape, along: bool) -> Right<'a> {
        let Shape { inputs, outputs, .. } = shape;
        match self {
            Values::Plain(values) if along => Right::Plain(Operand::along(values, outputs, inputs)),
            Values::Plain(values) => Right::Plain(Operand::across(values, inputs, outputs)),
            Values::Stored(weight) => Right::Stored { weight, along },
        }
    }
}

/// Weights of at most so many values are small.
const SMALL: usize = 1 << 14;

/// `x W^T + b`.
pub(in crate::tensor) fn forward(x: &[f32], weight: Values<'_>, bias: Option<&[f32]>, shape: Shape) -> Vec<f32> {
    let Shape { rows, inputs, outputs, precision } = shape;
    if shape.packs() {
        return new_product(precision, Operand::along(x, rows, inputs), weight.right(shape, true), bias);
    }
    let mut y = zeros(rows * outputs);
    if let Some(bias) = bias {
        y.chunks_mut(outputs).for_each(|row| row.copy_from_slice(bias));
    }
    if rows <= FEW_ROWS {
        few_rows(&operand(x, precision), weight, shape, &mut y);
        return y;
    }
    let values = match weight {
        Values::Plain(values) => Cow::Borrowed(values),
        Values::Stored(stored) => Cow::Owned(stored.to_f32()),
    };
    let product = Product::new(rows, outputs, inputs).adding();
    product.parallel(View::rows(x, inputs), View::rows(&values, inputs).t(), &mut y, outputs);
    y
}

/// [`forward`] of the same input with each weight, bias and shape. The shapes differ in their outputs alone.
pub(in crate::tensor) fn forward_each<const N: usize>(
    x: &[f32],
    factors: [(Values<'_>, Option<&[f32]>, Shape); N],
) -> [Vec<f32>; N] {
    match factors.first() {
        Some((.., shape)) if factors.iter().all(|(.., shape)| shape.packs()) => {
            let operand = Operand::along(x, shape.rows, shape.inputs);
            new_products(shape.precision, operand, factors.map(|(weight, bias, of)| (weight.right(of, true), bias)))
        }
        _ => factors.map(|(weight, bias, shape)| forward(x, weight, bias, shape)),
    }
}

/// `dx += dy W`.
pub(in crate::tensor) fn input_gradient(dy: &[f32], weight: Values<'_>, shape: Shape, dx: &mut Vec<f32>) {
    let Shape { rows, inputs, outputs, precision } = shape;
    if let (Precision::F32, Values::Plain(values)) = (precision, weight) {
        let product = Product::new(rows, inputs, outputs).adding();
        let dx = begun(dx, rows * inputs);
        return product.parallel(View::rows(dy, outputs), View::rows(values, inputs), dx, inputs);
    }
    add_product(precision, Operand::along(dy, rows, outputs), weight.right(shape, false), 1.0, dx);
}

/// The sum, set to zeros if nothing has been added yet.
fn begun(sum: &mut Vec<f32>, length: usize) -> &mut [f32] {
    if sum.is_empty() {
        *sum = zeros(length);
    }
    sum
}

/// `dW += dy^T x`.
pub(in crate::tensor) fn weight_gradient(dy: &[f32], x: &[f32], shape: Shape, dw: &mut Vec<f32>) {
    add_outer(dy, x, 1.0, shape, dw);
}

/// `db[j] += sum over rows of dy[row, j]`, in a fixed order.
pub(in crate::tensor) fn bias_gradient(dy: &[f32], db: &mut [f32]) {
    const ROWS: usize = 128;
    let width = db.len();
    let partial: Vec<Vec<f32>> = dy
        .par_chunks(ROWS * width)
        .map(|rows| {
            let mut sums = vec![0.0; width];
            for row in rows.chunks(width) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            sums
        })
        .collect();
    for sums in partial {
        db.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
    }
}

/// `y += scale * low B^T`. The inputs in `shape` are the rank.
pub(in crate::tensor) fn add_low_rank(low: &[f32], b: &[f32], scale: f32, shape: Shape, y: &mut [f32]) {
    let Shape { rows, inputs: rank, outputs, precision } = shape;
    if precision == Precision::F32 {
        let product = Product::new(rows, outputs, rank).adding().scaled(scale);
        return product.parallel(View::rows(low, rank), View::rows(b, rank).t(), y, outputs);
    }
    let output = Output { alpha: scale, add: true, bias: None };
    product(precision, Operand::along(low, rows, rank), Values::Plain(b).right(shape, true), y, output);
}

/// `d_low += scale * dy B`.
pub(in crate::tensor) fn low_gradient(dy: &[f32], b: &[f32], scale: f32, shape: Shape, d_low: &mut Vec<f32>) {
    let Shape { rows, inputs: rank, outputs, precision } = shape;
    if precision == Precision::F32 {
        let product = Product::new(rows, rank, outputs).adding().scaled(scale);
        let d_low = begun(d_low, rows * rank);
        return product.parallel(View::rows(dy, outputs), View::rows(b, rank), d_low, rank);
    }
    add_product(precision, Operand::along(dy, rows, outputs), Values::Plain(b).right(shape, false), scale, d_low);
}

/// `dB += scale * dy^T low`.
pub(in crate::tensor) fn b_gradient(dy: &[f32], low: &[f32], scale: f32, shape: Shape, db: &mut Vec<f32>) {
    add_outer(dy, low, scale, shape, db);
}

/// `dw += scale * dy^T x`.
fn add_outer(dy: &[f32], x: &[f32], scale: f32, shape: Shape, dw: &mut Vec<f32>) {
    let Shape { rows, inputs, outputs, precision } = shape;
    if precision == Precision::F32 {
        let product = Product::new(outputs, inputs, rows).adding().scaled(scale);
        let dw = begun(dw, outputs * inputs);
        return product.parallel(View::rows(dy, outputs).t(), View::rows(x, inputs), dw, inputs);
    }
    let [dy, x] = [(dy, outputs), (x, inputs)].map(|(values, lanes)| Operand::across(values, lanes, rows));
    add_product(precision, dy, Right::Plain(x), scale, dw);
}
