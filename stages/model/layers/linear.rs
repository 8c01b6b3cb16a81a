//! Linear layers with optional LoRA adapters.

use std::{borrow::Cow, ops::Range};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{
    lora::{Lora, LoraSettings, Magnitude, square},
    parameter::{Parameter, Role},
    pass::{Dropout, Pass},
    random::{fnv1a, uniform},
};
use crate::{
    error::Result,
    tensor::{self, Graph, Mat, Place, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// A linear layer `y = x W^T + b`; with a LoRA adapter, `+ scale * dropout(x) A^T B^T` (Hu et al. 2021, arXiv
/// 2106.09685); with DoRA (Liu et al. 2024, arXiv 2402.09353), the rows of `W + scale * B A` get trained norms.
#[derive(Clone)]
pub struct Linear {
    /// The name in files, without `.weight`.
    pub name: String,
    /// `[out, in]`.
    pub weight: Weight,
    /// `[1, out]`.
    pub bias: Option<Mat>,
    /// The adapter, if there is one.
    pub lora: Option<Lora>,
}

/// [`tensor::linear`], or [`tensor::linear_in_f32`].
type Product = fn(&Graph, &Mat, &Weight, Option<&Mat>) -> Mat;

impl Linear {
    /// Reads the layer `name`.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type.
    pub fn load(from: &TensorFiles, name: &str, outputs: usize, inputs: usize, bias: bool) -> Result<Self> {
        let bias = if bias { Some(from.vector(&format!("{name}.bias"), outputs)?) } else { None };
        Ok(Self { name: name.into(), weight: from.weight(name, outputs, inputs)?, bias, lora: None })
    }

    /// The last component of the name, such as `q_proj`, by which adapters target layers.
    pub fn kind(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// Returns `[rows, out]` from `x` `[rows, in]`.
    pub fn forward(&self, pass: &Pass, x: &Mat) -> Mat {
        self.adapted(pass, x, tensor::linear)
    }

    /// [`Linear::forward`] of the same input through each layer, in less time.
    pub fn forward_each<const N: usize>(pass: &Pass, x: &Mat, layers: [&Self; N]) -> [Mat; N] {
        if layers.iter().any(|layer| layer.magnitude().is_some()) {
            return layers.map(|layer| layer.forward(pass, x));
        }
        for layer in layers {
            layer.observe(pass, x);
        }
        let own = layers.map(|layer| (&layer.weight, layer.bias.as_ref()));
        tensor::linear_each(&pass.graph, x, own, |index, y| layers[index].add_adapter(pass, x, y))
    }

    /// Like [`Linear::forward`], with the output in f32 on every device.
    pub fn logits(&self, pass: &Pass, x: &Mat) -> Mat {
        self.adapted(pass, x, tensor::linear_in_f32)
    }

    /// The layer's output with that of the adapter, if there is one. `linear` computes the layer's own.
    fn adapted(&self, pass: &Pass, x: &Mat, linear: Product) -> Mat {
        self.observe(pass, x);
        match self.magnitude() {
            Some((lora, magnitude)) => self.decomposed(pass, x, lora, magnitude, linear),
            None => self.add_adapter(pass, x, linear(&pass.graph, x, &self.weight, self.bias.as_ref())),
        }
    }

    fn observe(&self, pass: &Pass, x: &Mat) {
        if let Some(observer) = pass.observer() {
            observer.see(&self.name, x);
        }
    }

    /// The adapter and its magnitude, with DoRA.
    fn magnitude(&self) -> Option<(&Lora, &Magnitude)> {
        let lora = self.lora.as_ref()?;
        Some((lora, lora.magnitude.as_ref()?))
    }

    /// `y` and the output of the adapter, if there is one.
    fn add_adapter(&self, pass: &Pass, x: &Mat, y: Mat) -> Mat {
        let (Some(lora), g) = (&self.lora, &pass.graph) else { return y };
        let low = tensor::linear(g, &self.dropped(pass, x, lora), &Weight::Dense(lora.a.clone()), None);
        tensor::add_low_rank(g, y, &low, &lora.b, lora.scale)
    }

    /// The input of the adapter: in training with dropout.
    fn dropped(&self, pass: &Pass, x: &Mat, lora: &Lora) -> Mat {
        match pass.dropout() {
            Some(Dropout { seed, rows, .. }) => {
                tensor::dropout(&pass.graph, x, lora.dropout, seed ^ fnv1a(&self.name), rows)
            }
            None => x.clone(),
        }
    }

    /// The output with DoRA. As in peft, dropout is on the input of the whole adapted weight, and what it takes away goes through
    /// the frozen weight: `y = (x - dropout(x)) W^T + b + m / |W + scale B A| * dropout(x) (W + scale B A)^T`.
    fn decomposed(&self, pass: &Pass, x: &Mat, lora: &Lora, magnitude: &Magnitude, linear: Product) -> Mat {
        let g = &pass.graph;
        let norms = lora.row_norms(&self.weight, magnitude);
        let dropped = self.dropped(pass, x, lora);
        let low = tensor::linear(g, &dropped, &Weight::Dense(lora.a.clone()), None);
        let whole = linear(g, &dropped, &self.weight, None);
        let whole = tensor::add_low_rank(g, whole, &low, &lora.b, lora.scale);
        let y = tensor::set_norms(g, &whole, &magnitude.vector, &norms);
        match (pass.dropout().filter(|_| lora.dropout > 0.0), &self.bias) {
            (Some(Dropout { seed, rows, .. }), bias) => {
                let rest = tensor::dropout_rest(g, x, lora.dropout, seed ^ fnv1a(&self.name), rows);
                tensor::add(g, y, &linear(g, &rest, &self.weight, bias.as_ref()))
            }
            (None, Some(bias)) => tensor::add_rows(g, y, bias),
            (None, None) => y,
        }
    }

    /// The trainable matrices, in no particular order.
    pub fn parameters(&self) -> Vec<Mat> {
        let adapter = self.lora.iter().flat_map(Lora::mats);
        let others = self.bias.iter().chain(adapter).filter(|mat| mat.needs_grad());
        self.weight.trained().into_iter().chain(others).cloned().collect()
    }

    /// Makes weight and bias trainable, in f32.
    pub fn unfreeze(&mut self) {
        self.weight = self.weight.trainable();
        self.bias = self.bias.take().map(Mat::trainable);
    }

    /// Attaches a new trainable adapter, initialized as in peft: A uniform within `1 / sqrt(in)` (Kaiming with a = sqrt
    /// 5), B zero, and DoRA's magnitudes the norms of the weight's rows, so that the output does not change.
    pub fn adapt(&mut self, settings: &LoraSettings, seed: u64) {
        let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ fnv1a(&self.name));
        let bound = 1.0 / (inputs as f32).sqrt();
        let a = uniform(&mut random, settings.rank * inputs, bound);
        let place = self.weight.place();
        let a = Mat::from_host(settings.rank, inputs, a).to(&place).trainable();
        let b = Mat::zeros(outputs, settings.rank).to(&place).trainable();
        let mut lora = Lora::new(a, b, settings);
        if settings.dora {
            let mut magnitude = Magnitude::new(&self.weight, None);
            magnitude.vector = magnitude.vector.trainable();
            lora.magnitude = Some(magnitude);
        }
        self.lora = Some(lora);
    }

    /// Moves weight, bias and adapter to `place`.
    pub fn move_to(&mut self, place: &Place) {
        self.weight = self.weight.to(place);
        self.bias.iter_mut().for_each(|mat| *mat = mat.to(place).as_operand());
        self.lora.iter_mut().for_each(|lora| lora.move_to(place));
    }

    /// Replaces the weight by [`Linear::merged`] and removes the adapter.
    pub fn fold(&mut self) {
        if self.lora.is_some() {
            let (outputs, inputs) = (self.weight.outputs(), self.weight.inputs());
            let merged = Mat::from_host(outputs, inputs, self.merged().into_owned());
            self.weight = Weight::Dense(merged.to(&self.weight.place()));
            self.lora = None;
        }
    }

    /// The weight with the adapter merged, `W + scale * B A`, its rows at the norms of DoRA if it has them: `[out, in]` in f32,
    /// row-major. Computed on the host in f32.
    pub fn merged(&self) -> Cow<'_, [f32]> {
        self.merged_rows(0..self.weight.outputs())
    }

    /// Some rows of [`Linear::merged`].
    pub fn merged_rows(&self, rows: Range<usize>) -> Cow<'_, [f32]> {
        let dense = self.weight.read_once(rows.clone());
        let Some(lora) = &self.lora else { return dense };
        // B A, computed as a linear layer with input B `[out, rank]` and weight A^T `[in, rank]`.
        let a_transposed = Weight::Dense(transpose(&lora.a));
        let rank = lora.b.cols();
        let b = lora.b.to_host()[rows.start * rank..rows.end * rank].to_vec();
        let b = Mat::from_host(rows.len(), rank, b);
        let delta = tensor::linear(&Graph::inference(), &b, &a_transposed, None);
        let mut merged: Vec<f32> = dense.iter().zip(&*delta.to_host()).map(|(w, d)| w + lora.scale * d).collect();
        if let Some(magnitude) = &lora.magnitude {
            let wanted = magnitude.vector.to_host();
            for (row, wanted) in merged.chunks_mut(dense.len() / rows.len().max(1)).zip(&wanted[rows]) {
                let factor = wanted / square(row).max(tensor::LEAST_SQUARE).sqrt() as f32;
                for value in row {
                    *value *= factor;
                }
            }
        }
        merged.into()
    }

    /// Appends weight (adapter merged) and bias to `all`.
    pub fn tensors<'a>(&'a self, all: &mut Vec<NamedTensor<'a>>) {
        let (rows, cols) = (self.weight.outputs(), self.weight.inputs());
        all.push(NamedTensor::matrix(&self.name, rows, cols, |rows| self.merged_rows(rows)));
        if let Some(bias) = &self.bias {
            all.push(NamedTensor::flat(format!("{}.bias", self.name), bias));
        }
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
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
            visit(Parameter::new(format!("{}.lora_B.weight", self.name), Role::LoraB), &mut lora.b);
            if let Some(magnitude) = &mut lora.magnitude {
                let name = format!("{}.lora_magnitude_vector", self.name);
                visit(Parameter::new(name, Role::Magnitude), &mut magnitude.vector);
            }
        }
    }
}

fn transpose(mat: &Mat) -> Mat {
    let (rows, cols, values) = (mat.rows(), mat.cols(), mat.to_host());
    Mat::from_host(cols, rows, (0..rows * cols).map(|i| values[i % rows * cols + i / rows]).collect())
}
