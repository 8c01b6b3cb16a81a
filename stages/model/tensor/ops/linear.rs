//! `y = x W^T + b`: with a weight that trains, or with one that is stored outside the tape and stays as it is.

use std::{borrow::Cow, sync::Arc};

use rayon::prelude::*;

use crate::tensor::{
    Graph, Mat, Stored,
    host::shared::Shared,
    host::gemm::{Product, View},
    host::gemv::{FEW_ROWS, few_rows},
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
    /// The same values as something that trains, in f32.
    #[must_use]
    pub fn trainable(&self) -> Self {
        let mat = match self {
            Self::Dense(mat) => mat.clone(),
            Self::Stored(stored) => Mat::new(stored.rows(), stored.cols(), stored.to_f32()),
        };
        Self::Dense(mat.trainable())
    }

    /// All values in f32, row by row.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self {
            Self::Dense(mat) => Cow::Borrowed(mat.values()),
            Self::Stored(stored) => Cow::Owned(stored.to_f32()),
        }
    }

    /// The matrix, if it trains.
    pub fn trained(&self) -> Option<&Mat> {
        if let Self::Dense(mat) = self { Some(mat).filter(|mat| mat.needs_grad) } else { None }
    }

    /// Width of the output.
    pub fn outputs(&self) -> usize {
        match self {
            Self::Dense(mat) => mat.rows(),
            Self::Stored(stored) => stored.rows(),
        }
    }

    /// The values if they can be used as they lie in memory, else what must be widened first.
    pub(in crate::tensor) fn in_place(&self) -> Result<&[f32], &Stored> {
        match self {
            Self::Dense(mat) => Ok(mat.values()),
            Self::Stored(stored) => stored.in_place().ok_or(stored),
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
    let dx = x.needs_grad.then(|| x.ghost());
    // A frozen weight's gradient is never asked for: then the input need not be kept.
    let trained = weight.trained().map(|mat| (mat.ghost(), x.clone()));
    let (weight, bias) = (weight.clone(), bias.cloned());
    g.record(&y, move |dy, gradients| {
        if let Some(dx) = dx {
            input_gradient(&dy, &weight, rows, gradients.buffer(&dx));
        }
        if let Some((dw, x)) = trained {
            let inputs = x.cols();
            let product = Product::new(outputs, inputs, rows).adding();
            let dw = gradients.buffer(&dw);
            product.parallel(View::rows(&dy, outputs).t(), View::rows(x.values(), inputs), dw, inputs);
        }
        if let Some(bias) = bias.filter(Mat::needs_grad) {
            add_column_sums(&dy, gradients.buffer(&bias.ghost()));
        }
    });
    y
}

/// `y + scale * low B^T`, the upper half of a LoRA adapter, in the place of `y`: no clone of `y` may be used after
/// this. `low` `[rows, rank]`, `b` `[out, rank]`.
pub fn add_low_rank(g: &Graph, mut y: Mat, low: &Mat, b: &Mat, scale: f32) -> Mat {
    let (rows, rank, outputs) = (low.rows(), low.cols(), b.rows());
    let up = Product::new(rows, outputs, rank).adding().scaled(scale);
    up.parallel(View::rows(low.values(), rank), View::rows(b.values(), rank).t(), y.values_mut(), outputs);
    y.needs_grad |= g.records() && (low.needs_grad || b.needs_grad);
    let (low, b) = (low.clone(), b.clone());
    g.record_in_place(&y, move |dy, gradients| {
        let dy = View::rows(dy, outputs);
        if low.needs_grad {
            let product = Product::new(rows, rank, outputs).adding().scaled(scale);
            product.parallel(dy, View::rows(b.values(), rank), gradients.buffer(&low.ghost()), rank);
        }
        if b.needs_grad {
            let product = Product::new(outputs, rank, rows).adding().scaled(scale);
            product.parallel(dy.t(), View::rows(low.values(), rank), gradients.buffer(&b.ghost()), rank);
        }
    });
    y
}

/// `y += x W^T`.
fn forward(x: &Mat, weight: &Weight, y: &mut [f32]) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.outputs());
    if rows <= FEW_ROWS {
        return few_rows(x, weight, y);
    }
    let x = View::rows(x.values(), inputs);
    let stored = match weight.in_place() {
        Ok(values) => {
            let product = Product::new(rows, outputs, inputs).adding();
            return product.parallel(x, View::rows(values, inputs).t(), y, outputs);
        }
        Err(stored) => stored,
    };
    // Each tile gives its own columns of y, so the tiles can go side by side.
    let (shared, length, tile_rows) = (Shared::new(y), y.len(), stored.tile_rows());
    (0..outputs.div_ceil(tile_rows)).into_par_iter().for_each_init(Vec::new, |tile, index| {
        let start = index * tile_rows;
        let count = tile_rows.min(outputs - start);
        tile.resize(count * inputs, 0.0);
        stored.widen(start, tile);
        let product = Product::new(rows, count, inputs).adding();
        product.tile(x, View::rows(tile, inputs).t(), shared, start, length, outputs);
    });
}

/// `dx += dy W`.
fn input_gradient(dy: &[f32], weight: &Weight, rows: usize, dx: &mut [f32]) {
    /// Each product reads and writes all of dx, so it should go over many rows of the weight.
    const DEPTH: usize = 512;
    let (inputs, outputs) = (weight.inputs(), weight.outputs());
    let stored = match weight.in_place() {
        Ok(values) => {
            let product = Product::new(rows, inputs, outputs).adding();
            return product.parallel(View::rows(dy, outputs), View::rows(values, inputs), dx, inputs);
        }
        Err(stored) => stored,
    };
    let mut tile = vec![0.0; DEPTH.min(outputs) * inputs];
    for start in (0..outputs).step_by(DEPTH) {
        let count = DEPTH.min(outputs - start);
        let tile = &mut tile[..count * inputs];
        stored.widen_parallel(start, tile);
        let product = Product::new(rows, inputs, count).adding();
        product.parallel(View::rows(&dy[start..], outputs), View::rows(tile, inputs), dx, inputs);
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
