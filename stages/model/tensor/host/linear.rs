//! The products of linear layers and LoRA adapters. Their operands are rounded to the shape's precision.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{
    bf16::{self, Kernel},
    gemm::{Product, View},
    gemv::{FEW_ROWS, few_rows},
    round::{operand, round},
    shared::Shared,
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

/// The values of a weight.
#[derive(Clone, Copy)]
pub(in crate::tensor) enum Values<'a> {
    /// In f32, used without a copy.
    Plain(&'a [f32]),
    /// In a file's encoding, decoded tile by tile.
    Stored(&'a Stored),
}

impl<'a> Values<'a> {
    /// The values as an operand. Stored ones are rounded tile by tile when they are decoded.
    fn operand(self, precision: Precision) -> Operand<'a> {
        match self {
            Self::Plain(values) => Operand::Plain(operand(values, precision)),
            Self::Stored(stored) => Operand::Stored(stored),
        }
    }
}

/// A weight in the precision of a product.
enum Operand<'a> {
    Plain(Cow<'a, [f32]>),
    Stored(&'a Stored),
}

/// The processor's own product, if it has one for this precision.
fn native(precision: Precision) -> Option<Kernel> {
    if precision == Precision::Bf16 { Kernel::native() } else { None }
}

/// `x W^T + b`.
pub(in crate::tensor) fn forward(x: &[f32], weight: Values<'_>, bias: Option<&[f32]>, shape: Shape) -> Vec<f32> {
    let Shape { rows, inputs, outputs, precision } = shape;
    if let Some(kernel) = native(precision).filter(|_| rows > FEW_ROWS) {
        return bf16::linear::forward(kernel, x, weight, bias, shape);
    }
    let x = operand(x, precision);
    let mut y = vec![0.0; rows * outputs];
    if let Some(bias) = bias {
        y.par_chunks_mut(outputs).with_min_len(16).for_each(|row| row.copy_from_slice(bias));
    }
    if rows <= FEW_ROWS {
        few_rows(&x, weight, shape, &mut y);
        return y;
    }
    let x = View::rows(&x, inputs);
    let stored = match weight.operand(precision) {
        Operand::Plain(values) => {
            let product = Product::new(rows, outputs, inputs).adding();
            product.parallel(x, View::rows(&values, inputs).t(), &mut y, outputs);
            return y;
        }
        Operand::Stored(stored) => stored,
    };
    // Each tile of the weight computes separate columns of y, so tiles run in parallel.
    let (length, tile_rows) = (y.len(), stored.tile_rows());
    let shared = Shared::new(&mut y);
    (0..outputs.div_ceil(tile_rows)).into_par_iter().for_each_init(Vec::new, |tile, index| {
        let start = index * tile_rows;
        let count = tile_rows.min(outputs - start);
        tile.resize(count * inputs, 0.0);
        stored.widen(start, tile);
        round(tile, precision);
        let product = Product::new(rows, count, inputs).adding();
        product.tile(x, View::rows(tile, inputs).t(), shared, start, length, outputs);
    });
    y
}

/// `dx += dy W`.
pub(in crate::tensor) fn input_gradient(dy: &[f32], weight: Values<'_>, shape: Shape, dx: &mut [f32]) {
    /// Rows of the weight per product; many, since each product reads and writes all of dx.
    const DEPTH: usize = 512;
    let Shape { rows, inputs, outputs, precision } = shape;
    if let Some(kernel) = native(precision) {
        return bf16::linear::input_gradient(kernel, dy, weight, shape, dx);
    }
    let dy = operand(dy, precision);
    let stored = match weight.operand(precision) {
        Operand::Plain(values) => {
            let product = Product::new(rows, inputs, outputs).adding();
            return product.parallel(View::rows(&dy, outputs), View::rows(&values, inputs), dx, inputs);
        }
        Operand::Stored(stored) => stored,
    };
    let mut tile = vec![0.0; DEPTH.min(outputs) * inputs];
    for start in (0..outputs).step_by(DEPTH) {
        let count = DEPTH.min(outputs - start);
        let tile = &mut tile[..count * inputs];
        stored.widen_parallel(start, tile);
        round(tile, precision);
        let product = Product::new(rows, inputs, count).adding();
        product.parallel(View::rows(&dy[start..], outputs), View::rows(tile, inputs), dx, inputs);
    }
}

/// `dW += dy^T x`.
pub(in crate::tensor) fn weight_gradient(dy: &[f32], x: &[f32], shape: Shape, dw: &mut [f32]) {
    let Shape { rows, inputs, outputs, precision } = shape;
    if let Some(kernel) = native(precision) {
        return bf16::linear::weight_gradient(kernel, dy, x, shape, dw);
    }
    let product = Product::new(outputs, inputs, rows).adding();
    let (dy, x) = (operand(dy, precision), operand(x, precision));
    product.parallel(View::rows(&dy, outputs).t(), View::rows(&x, inputs), dw, inputs);
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
    if let Some(kernel) = native(precision) {
        return bf16::linear::add_low_rank(kernel, low, b, scale, shape, y);
    }
    let product = Product::new(rows, outputs, rank).adding().scaled(scale);
    let (low, b) = (operand(low, precision), operand(b, precision));
    product.parallel(View::rows(&low, rank), View::rows(&b, rank).t(), y, outputs);
}

/// `d_low += scale * dy B`.
pub(in crate::tensor) fn low_gradient(dy: &[f32], b: &[f32], scale: f32, shape: Shape, d_low: &mut [f32]) {
    let Shape { rows, inputs: rank, outputs, precision } = shape;
    if let Some(kernel) = native(precision) {
        return bf16::linear::low_gradient(kernel, dy, b, scale, shape, d_low);
    }
    let product = Product::new(rows, rank, outputs).adding().scaled(scale);
    let (dy, b) = (operand(dy, precision), operand(b, precision));
    product.parallel(View::rows(&dy, outputs), View::rows(&b, rank), d_low, rank);
}

/// `dB += scale * dy^T low`.
pub(in crate::tensor) fn b_gradient(dy: &[f32], low: &[f32], scale: f32, shape: Shape, db: &mut [f32]) {
    let Shape { rows, inputs: rank, outputs, precision } = shape;
    if let Some(kernel) = native(precision) {
        return bf16::linear::b_gradient(kernel, dy, low, scale, shape, db);
    }
    let product = Product::new(outputs, rank, rows).adding().scaled(scale);
    let (dy, low) = (operand(dy, precision), operand(low, precision));
    product.parallel(View::rows(&dy, outputs).t(), View::rows(&low, rank), db, rank);
}
