//! Layer norm and RMS norm, with their weights and names.

use super::{
    parameter::{Parameter, Role},
    pass::Pass,
};
use crate::{
    error::Result,
    tensor::{self, Mat, Place},
    weights::{NamedTensor, TensorFiles},
};

/// Normalization of each row: a layer norm if it has a bias, else an RMS norm.
#[derive(Clone)]
pub struct Norm {
    /// The name in files, without `.weight`.
    pub name: String,
    /// Scale, `[1, width]`.
    pub weight: Mat,
    /// Shift of a layer norm, `[1, width]`.
    pub bias: Option<Mat>,
    /// Added to the variance (layer norm) or to the mean of squares (RMS norm).
    pub epsilon: f32,
}

impl Norm {
    /// Reads the layer norm `name`.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type.
    pub fn layer(from: &TensorFiles, name: &str, width: usize, epsilon: f64) -> Result<Self> {
        let bias = from.vector(&format!("{name}.bias"), width)?;
        Ok(Self { bias: Some(bias), ..Self::rms(from, name, width, epsilon)? })
    }

    /// Reads the RMS norm `name`.
    ///
    /// # Errors
    /// If the tensor is missing or has the wrong shape or type.
    pub fn rms(from: &TensorFiles, name: &str, width: usize, epsilon: f64) -> Result<Self> {
        let weight = from.vector(&format!("{name}.weight"), width)?;
        Ok(Self { name: name.into(), weight, bias: None, epsilon: epsilon as f32 })
    }

    /// Takes weight and bias of the norm `theirs`.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type.
    pub(crate) fn replace(&mut self, from: &TensorFiles, theirs: &str) -> Result<()> {
        let width = self.weight.count();
        self.weight = from.vector(&format!("{theirs}.weight"), width)?;
        if self.bias.is_some() {
            self.bias = Some(from.vector(&format!("{theirs}.bias"), width)?);
        }
        Ok(())
    }

    /// Returns `[rows, width]` from `x` `[rows, width]`.
    pub fn forward(&self, pass: &Pass, x: &Mat) -> Mat {
        match &self.bias {
            Some(bias) => tensor::layer_norm(&pass.graph, x, &self.weight, bias, self.epsilon),
            None => tensor::rms_norm(&pass.graph, x, &self.weight, self.epsilon),
        }
    }

    /// Makes weight and bias trainable.
    pub fn unfreeze(&mut self) {
        self.weight = self.weight.clone().trainable();
        self.bias = self.bias.take().map(Mat::trainable);
    }

    /// Moves weight and bias to `place`.
    pub fn move_to(&mut self, place: &Place) {
        self.bias.iter_mut().chain([&mut self.weight]).for_each(|mat| *mat = mat.to(place));
    }

    /// Appends weight and bias to `all`.
    pub fn tensors<'a>(&'a self, all: &mut Vec<NamedTensor<'a>>) {
        all.push(NamedTensor::flat(format!("{}.weight", self.name), &self.weight));
        if let Some(bias) = &self.bias {
            all.push(NamedTensor::flat(format!("{}.bias", self.name), bias));
        }
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        if self.weight.needs_grad() {
            visit(Parameter::new(format!("{}.weight", self.name), Role::Norm), &mut self.weight);
        }
        if let Some(bias) = self.bias.as_mut().filter(|bias| bias.needs_grad()) {
            visit(Parameter::new(format!("{}.bias", self.name), Role::Norm), bias);
        }
    }

    /// The trainable matrices.
    pub fn parameters(&self) -> impl Iterator<Item = Mat> {
        [Some(&self.weight), self.bias.as_ref()].into_iter().flatten().filter(|mat| mat.needs_grad()).cloned()
    }
}
