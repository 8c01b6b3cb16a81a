//! Linear layers with optional LoRA adapters.

use std::borrow::Cow;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{
    parameter::{Parameter, Role},
    pass::{Dropout, Pass},
    random::{fnv1a, uniform},
};
use crate::{
    error::Result,
    tensor::{self, Graph, Mat, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// `y = x W^T + b`, and with an adapter `+ scale * dropout(x) A^T B^T` (Hu et al. 2021).
#[derive(Clone)]
pub struct Linear {
    /// Its name in files, without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub weight: Weight,
    /// `[1, out]`.
    pub bias: Option<Mat>,
    /// The adapter, if there is one.
    pub lora: Option<Lora>,
}

/// A low-rank adapter.
#[derive(Clone)]
pub struct Lora {
    /// `[rank, in]`.
    pub a: Mat,
    /// `[out, rank]`.
    pub b: Mat,
    /// `alpha / rank`.
    pub scale: f32,
    /// Share of inputs that is dropped in training.
    pub dropout: f32,
}

/// How adapters are made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSettings {
    /// Width of the bottleneck.
    pub rank: usize,
    /// The adapter is scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of inputs that is dropped in training.
    pub dropout: f64,
}

impl Lora {
    /// An adapter of `a` `[rank, in]` and `b` `[out, rank]`.
    pub fn new(a: Mat, b: Mat, settings: &LoraSettings) -> Self {
        let scale = (settings.alpha / settings.rank as f64) as f32;
        Self { a, b, scale, dropout: settings.dropout as f32 }
    }
}

impl Linear {
    /// Reads a layer.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type.
    pub fn load(from: &TensorFiles, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        let bias = if bias { Some(from.vector(&format!("{name}.bias"), outputs)?) } else { None };
        Ok(Self { name: name.into(), weight: from.weight(name, outputs, inputs)?, bias, lora: None })
    }

    /// The last part of its name, by which adapters choose layers.
    pub fn kind(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// Applies the layer to `x` `[rows, in]`.
    pub fn forward(&self, pass: &Pass, x: &Mat) -> Mat {
        let g = &pass.graph;
        let y = tensor::linear(g, x, &self.weight, self.bias.as_ref());
        let Some(lora) = &self.lora else { return y };
        let x = match pass.dropout() {
            Some(Dropout { seed, rows, .. }) => tensor::dropout(g, x, lora.dropout, seed ^ fnv1a(&self.name), rows),
            None => x.clone(),
        };
        let low = tensor::linear(g, &x, &Weight::Dense(lora.a.clone()), None);
        tensor::add_low_rank(g, y, &low, &lora.b, lora.scale)
    }

    /// The matrices that train, in no particular order.
    pub fn parameters(&self) -> Vec<Mat> {
        let adapter = self.lora.iter().flat_map(|lora| [&lora.a, &lora.b]);
        let others = self.bias.iter().chain(adapter).filter(|mat| mat.needs_grad());
        self.weight.trained().into_iter().chain(others).cloned().collect()
    }

    /// Lets weight and bias train, in f32.
    pub fn unfreeze(&mut self) {
        self.weight = self.weight.trainable();
        self.bias = self.bias.take().map(Mat::trainable);
    }

    /// Adds a fresh adapter: A uniform as peft's (Kaiming with a = sqrt 5), B zero, so that nothing changes yet.
    pub fn adapt(&mut self, settings: &LoraSettings, seed: u64) {
        let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(&self.name));
        let bound = 1.0 / (inputs as f32).sqrt();
        let a = uniform(&mut random, settings.rank * inputs, bound);
        let a = Mat::from_host(settings.rank, inputs, a).trainable();
        let b = Mat::zeros(outputs, settings.rank).trainable();
        self.lora = Some(Lora::new(a, b, settings));
    }

    /// Puts the adapter into the weight, for good.
    pub fn fold(&mut self) {
        if self.lora.is_some() {
            let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
            self.weight = Weight::Dense(Mat::from_host(outputs, inputs, self.merged().into_owned()));
            self.lora = None;
        }
    }

    /// The weight in f32 with the adapter in it: `W + scale * B A`.
    pub fn merged(&self) -> Cow<'_, [f32]> {
        let dense = self.weight.to_host();
        let Some(lora) = &self.lora else { return dense };
        // B A, as the product of B `[out, rank]` with the transpose of A^T.
        let a_transposed = Weight::Dense(transpose(&lora.a));
        let delta = tensor::linear(&Graph::inference(), &lora.b, &a_transposed, None);
        dense.iter().zip(&*delta.to_host()).map(|(w, d)| w + lora.scale * d).collect()
    }

    /// Adds weight (adapter merged) and bias to `all`.
    pub fn tensors<'a>(&'a self, all: &mut Vec<NamedTensor<'a>>) {
        let (rows, cols) = (self.weight.outputs(), self.weight.inputs());
        all.push(NamedTensor::matrix(&self.name, rows, cols, || self.merged()));
        if let Some(bias) = &self.bias {
            all.push(NamedTensor::flat(format!("{}.bias", self.name), bias));
        }
    }

    /// Every matrix that trains, with its name, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        if let Weight::Dense(mat) = &mut self.weight
            && mat.needs_grad()
        {
            visit(Parameter::new(format!("{}.weight", self.name), Role::Matrix), mat);
        }
        if let Some(bias) = self.bias.as_mut().filter(|bias| bias.needs_grad()) {
            visit(Parameter::new(format!("{}.bias", self.name), Role::Bias), bias);
        }
        if let Some(lora) = &mut self.lora {
            visit(Parameter::new(format!("{}.lora_A.weight", self.name), Role::Matrix), &mut lora.a);
            visit(Parameter::new(format!("{}.lora_B.weight", self.name), Role::Matrix), &mut lora.b);
        }
    }
}

fn transpose(mat: &Mat) -> Mat {
    let (rows, cols, values) = (mat.rows(), mat.cols(), mat.to_host());
    Mat::from_host(cols, rows, (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect())
}
