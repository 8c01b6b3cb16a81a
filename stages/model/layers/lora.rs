//! Low-rank adapters of linear layers and their hyperparameters (Hu et al. 2021, arXiv 2106.09685), in peft's arithmetic; the
//! magnitudes of DoRA. Independent of the layer that has one.

use std::sync::{Arc, OnceLock};

use rayon::prelude::*;

use crate::{
    precision::Precision,
    tensor::{self, Graph, Mat, Place, Weight},
};

/// A LoRA adapter.
#[derive(Clone)]
pub struct Lora {
    /// `[rank, in]`.
    pub a: Mat,
    /// `[out, rank]`.
    pub b: Mat,
    /// Factor on the adapter's output: [`LoraSettings::scale`].
    pub scale: f32,
    /// Dropout rate of the adapter's input in training.
    pub dropout: f32,
    /// DoRA's magnitudes, if the adapter has them.
    pub magnitude: Option<Magnitude>,
}

/// Hyperparameters of adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSettings {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Dropout rate of the adapter's input in training.
    pub dropout: f64,
    /// Rank-stabilized LoRA (Kalajdzievski 2023, arXiv 2312.03732): the scale has the root of the rank below it.
    pub rslora: bool,
    /// Weight-decomposed LoRA: each adapter has a [`Magnitude`].
    pub dora: bool,
}

impl LoraSettings {
    /// Plain LoRA.
    pub fn new(rank: usize, alpha: f64, dropout: f64) -> Self {
        Self { rank, alpha, dropout, rslora: false, dora: false }
    }

    /// The factor on an adapter's output: `alpha / rank`, or `alpha / sqrt(rank)` with rsLoRA.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

impl Lora {
    /// An adapter with `a` `[rank, in]` and `b` `[out, rank]`, without magnitudes.
    pub fn new(a: Mat, b: Mat, settings: &LoraSettings) -> Self {
        Self { a, b, scale: settings.scale() as f32, dropout: settings.dropout as f32, magnitude: None }
    }

    /// The matrices of the adapter.
    pub(super) fn mats(&self) -> impl Iterator<Item = &Mat> {
        [&self.a, &self.b].into_iter().chain(self.magnitude.iter().map(|magnitude| &magnitude.vector))
    }

    /// The same, mutable.
    pub(super) fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let Self { a, b, magnitude, .. } = self;
        [a, b].into_iter().chain(magnitude.iter_mut().map(|magnitude| &mut magnitude.vector))
    }

    /// The norms of the rows of `W + scale * B A`, without ever computing that matrix:
    ///
    /// `|w + d|^2 = |w|^2 + scale * b . (2 W A^T + scale * b A A^T)`, where `w` and `b` are rows of W and B, and `d = scale * b A`.
    ///
    /// W is multiplied with `rank` rows only, and stays in its encoding. Products are in f32 in every precision. Constant for
    /// the backward pass, as in peft and in section 4.3 of the paper.
    pub(super) fn row_norms(&self, weight: &Weight, magnitude: &Magnitude) -> Arc<[f32]> {
        let compute = || -> Arc<[f32]> {
            let (g, exact) = (Graph::inference(), Place { precision: Precision::F32, ..weight.place() });
            let [a, b] = [&self.a, &self.b].map(|mat| mat.to(&exact));
            let wa = tensor::linear(&g, &a, &weight.to(&exact), None); // [rank, out]
            let gram = tensor::linear(&g, &a, &Weight::Dense(a.clone()), None); // [rank, rank]
            let ba = tensor::linear(&g, &b, &Weight::Dense(gram), None); // [out, rank]
            let (wa, ba, b) = (wa.to_host(), ba.to_host(), b.to_host());
            let (rank, scale, outputs) = (self.a.rows(), f64::from(self.scale), magnitude.squares.len());
            let norm = |row: usize| {
                let part = |r: usize| {
                    let (at, across) = (row * rank + r, wa[r * outputs + row]);
                    f64::from(b[at]) * (2.0 * f64::from(across) + scale * f64::from(ba[at]))
                };
                let square = magnitude.squares[row] + scale * (0..rank).map(part).sum::<f64>();
                square.max(0.0).sqrt() as f32
            };
            (0..outputs).into_par_iter().with_min_len(64).map(norm).collect()
        };
        if self.mats().any(Mat::needs_grad) { compute() } else { magnitude.fixed.get_or_init(compute).clone() }
    }
}

/// The magnitudes of DoRA (Liu et al. 2024, arXiv 2402.09353): the norm that each row of the adapted weight gets, its
/// direction being that of `W + scale * B A`.
#[derive(Clone)]
pub struct Magnitude {
    /// `[1, out]`.
    pub vector: Mat,
    /// The squared norms of the rows of W.
    squares: Arc<[f64]>,
    /// What [`Lora::row_norms`] returns of an adapter that does not train.
    fixed: Arc<OnceLock<Arc<[f32]>>>,
}

impl Magnitude {
    /// The magnitudes `vector` `[1, out]` of an adapter on `weight`, or, before any training, the norms of its rows.
    pub fn new(weight: &Weight, vector: Option<Mat>) -> Self {
        let squares = row_squares(weight);
        let of_weight = || Mat::from_host(1, squares.len(), squares.iter().map(|s| s.sqrt() as f32).collect());
        Self { vector: vector.unwrap_or_else(of_weight), squares, fixed: Arc::default() }
    }
}

fn row_squares(weight: &Weight) -> Arc<[f64]> {
    /// Rows that are decoded at a time.
    const ROWS: usize = 64;
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    let part = |start: usize| {
        let values = weight.read_once(start..outputs.min(start + ROWS));
        values.chunks(inputs.max(1)).map(square).collect::<Vec<f64>>()
    };
    let starts: Vec<usize> = (0..outputs).step_by(ROWS).collect();
    starts.into_par_iter().flat_map_iter(part).collect()
}

/// The squared norm of a row.
pub(super) fn square(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(*value).powi(2)).sum()
}
