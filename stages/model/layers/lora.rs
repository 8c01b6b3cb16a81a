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
    fn mats_mut(&mut self) -> impl Iterator<Item = &mut Mat> {
        let Self { a, b, magnitude, .. } = self;
        [a, b].into_iter().chain(magnitude.iter_mut().map(|magnitude| &mut magnitude.vector))
    }

    /// The norms of the rows of `W + scale * B A`, `[1, out]`. W is multiplied with `rank` rows only, and stays in its encoding. Constant
    /// for the backward pass, as in peft and in section 4.3 of the paper. Products are in f32, but for that with W on a device,
    /// where W may be rounded.
    pub(super) fn row_norms(&self, weight: &Weight, magnitude: &Magnitude) -> Mat {
        let compute = || {
            let (g, place) = (Graph::inference(), weight.place());
            let exact = Place { precision: Precision::F32, ..place.clone() };
            let weight = if place.device.is_some() { weight.clone() } else { weight.to(&exact) };
            let [a, b] = [&self.a, &self.b].map(|mat| mat.to(&exact));
            let wa = tensor::linear_in_f32(&g, &a, &weight, None); // [rank, out]
            let gram = tensor::linear_in_f32(&g, &a, &Weight::Dense(a.clone()), None); // [rank, rank]
            let ba = tensor::linear_in_f32(&g, &b, &Weight::Dense(gram), None); // [out, rank]
            tensor::row_norms(&magnitude.squares, &b, &wa, &ba, self.scale)
        };
        if self.mats().any(Mat::needs_grad) { compute() } else { magnitude.fixed.get_or_init(compute).clone() }
    }

    /// Moves all matrices to `place`.
    pub(super) fn move_to(&mut self, place: &Place) {
        self.mats_mut().for_each(|mat| *mat = mat.to(place));
        if let Some(magnitude) = &mut self.magnitude {
            magnitude.squares = magnitude.squares.to(place);
            magnitude.fixed = Arc::default();
        }
    }
}

/// The magnitudes of DoRA (Liu et al. 2024, arXiv 2402.09353): the norm that each row of the adapted weight gets, its
/// direction being that of `W + scale * B A`.
#[derive(Clone)]
pub struct Magnitude {
    /// `[1, out]`.
    pub vector: Mat,
    /// The squared norms of the rows of W, `[1, out]`.
    squares: Mat,
    /// What [`Lora::row_norms`] returns of an adapter that does not train.
    fixed: Arc<OnceLock<Mat>>,
}

impl Magnitude {
    /// The magnitudes `vector` `[1, out]` of an adapter on `weight`, or, before any training, the norms of its rows.
    pub fn new(weight: &Weight, vector: Option<Mat>) -> Self {
        let squares = row_squares(weight);
        let row = |values: Vec<f32>| Mat::from_host(1, values.len(), values).to(&weight.place());
        let of_weight = || row(squares.iter().map(|square| f64::from(*square).sqrt() as f32).collect());
        Self { vector: vector.unwrap_or_else(of_weight), squares: row(squares.clone()), fixed: Arc::default() }
    }
}

fn row_squares(weight: &Weight) -> Vec<f32> {
    /// Rows that are decoded at a time.
    const ROWS: usize = 64;
    let (outputs, inputs) = (weight.outputs(), weight.inputs());
    let part = |start: usize| {
        let values = weight.read_once(start..outputs.min(start + ROWS));
        values.chunks(inputs.max(1)).map(|row| square(row) as f32).collect::<Vec<f32>>()
    };
    let starts: Vec<usize> = (0..outputs).step_by(ROWS).collect();
    starts.into_par_iter().flat_map_iter(part).collect()
}

/// The squared norm of a row.
pub(super) fn square(row: &[f32]) -> f64 {
    row.iter().map(|value| f64::from(*value).powi(2)).sum()
}
