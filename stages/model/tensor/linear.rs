//! `y = x W^T + b`: with a weight that trains, or with one that is stored outside the tape and stays as it is.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    Graph, Mat, Stored,
    access::Shared,
    gemm::{Product, View},
    stored::TILE_ROWS,
};

/// The weight of a linear layer, `[out, in]`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// In f32, on the tape if it trains.
    Dense(Mat),
    /// As it lies in the file, widened tile by tile when used. Never trains.
    Stored(Arc<Stored>),
}

impl Weight {
    /// Width of the output.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.rows(),
            Self::Stored(stored) => stored.rows(),
        }
    }

    /// Width of the input.
    pub fn inputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.cols(),
            Self::Stored(stored) => stored.cols(),
        }
    }
}

/// `x W^T + b`, with `x` `[rows, in]`, `bias` `[1, out]`. The backward pass computes only what is needed: the
/// gradient of a frozen weight never is.
///
/// # Panics
/// If `x` and `weight` don't fit: a bug of the caller's.
pub fn linear(g: &Graph, x: &Mat, weight: &Weight, bias: Option<&Mat>) -> Mat {
    let (rows, outputs) = (x.rows(), weight.outputs());
    assert_eq!(x.cols(), weight.inputs(), "the weight takes rows of another width");
    let mut y = vec![0.0; rows * outputs];
    if let Some(bias) = bias {
        y.par_chunks_mut(outputs).with_min_len(16).for_each(|row| row.copy_from_slice(bias.values()));
    }
    forward(x, weight, &mut y);
    let mut inputs = vec![x];
    inputs.extend(bias);
    if let Weight::Dense(mat) = weight {
        inputs.push(mat);
    }
    let y = g.output(rows, outputs, y, &inputs);
    let (x, weight, bias) = (x.clone(), weight.clone(), bias.cloned());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            input_gradient(&dy, &weight, rows, gradients.buffer(&x.ghost()));
        }
        if let Weight::Dense(weight) = &weight
            && weight.needs_grad
        {
            let (outputs, inputs) = (weight.rows(), weight.cols());
            let dw = gradients.buffer(&weight.ghost());
            let product = Product::new(outputs, inputs, rows).adding();
            product.parallel(View::rows(&dy, outputs).t(), View::rows(x.values(), inputs), dw, inputs);
        }
        if let Some(bias) = bias.filter(Mat::needs_grad) {
            add_column_sums(&dy, gradients.buffer(&bias.ghost()));
        }
    });
    y
}

/// `y += x W^T`.
fn forward(x: &Mat, weight: &Weight, y: &mut [f32]) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.outputs());
    match weight {
        Weight::Dense(mat) => {
            let product = Product::new(rows, outputs, inputs).adding();
            product.parallel(View::rows(x.values(), inputs), View::rows(mat.values(), inputs).t(), y, outputs);
        }
        // Each tile gives its own columns of y, so the tiles can go side by side.
        Weight::Stored(stored) => {
            let (shared, length) = (Shared::new(y), y.len());
            (0..outputs.div_ceil(TILE_ROWS)).into_par_iter().for_each_init(Vec::new, |tile, index| {
                let start = index * TILE_ROWS;
                let count = TILE_ROWS.min(outputs - start);
                tile.resize(count * inputs, 0.0);
                stored.widen(start, tile);
                let product = Product::new(rows, count, inputs).adding();
                product.tile(
                    View::rows(x.values(), inputs),
                    View::rows(tile, inputs).t(),
                    shared,
                    start,
                    length,
                    outputs,
                );
            });
        }
    }
}

/// `dx += dy W`.
fn input_gradient(dy: &[f32], weight: &Weight, rows: usize, dx: &mut [f32]) {
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    match weight {
        Weight::Dense(mat) => {
            let product = Product::new(rows, inputs, outputs).adding();
            product.parallel(View::rows(dy, outputs), View::rows(mat.values(), inputs), dx, inputs);
        }
        Weight::Stored(stored) => {
            let mut tile = vec![0.0; TILE_ROWS.min(outputs) * inputs];
            for start in (0..outputs).step_by(TILE_ROWS) {
                let count = TILE_ROWS.min(outputs - start);
                let tile = &mut tile[..count * inputs];
                stored.widen_parallel(start, tile);
                let product = Product::new(rows, inputs, count).adding();
                product.parallel(View::rows(&dy[start..], outputs), View::rows(tile, inputs), dx, inputs);
            }
        }
    }
}

/// `to[j] += sum over rows of dy[row, j]`, in a fixed order.
fn add_column_sums(dy: &[f32], to: &mut [f32]) {
    const ROWS: usize = 128;
    let width = to.len();
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
        to.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
    }
}
