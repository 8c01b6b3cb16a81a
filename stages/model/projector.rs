//! From vision features to embeddings of the language model: `mlp{N}x_gelu`, `linear` or `identity`.
//! Reference: LLaVA's `multimodal_projector/builder.py`.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    config::ProjectorType,
    error::{ModelError, Result},
    layers::{Linear, Parameter, Pass, Tower, uniform},
    tensor::{self, Activation, Mat, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// Linear layers with GELU (erf) between them.
pub struct Projector(Vec<Linear>);

/// The number of linear layers.
fn depth(kind: ProjectorType, inputs: usize, outputs: usize, config: &Path) -> Result<usize> {
    if kind.depth() == 0 && inputs != outputs {
        let message =
            format!("mm_projector_type `{kind}` needs towers of the same width, and they have {inputs} and {outputs}");
        return Err(ModelError::file(config, message));
    }
    Ok(kind.depth())
}

/// The name of layer `index`: its place in an `nn.Sequential` where there is a GELU between two linear layers.
fn name(prefix: &str, kind: ProjectorType, index: usize) -> String {
    match kind {
        // A layer alone, without a Sequential around it.
        ProjectorType::Linear => prefix.trim_end_matches('.').into(),
        ProjectorType::Identity | ProjectorType::Mlp(_) => format!("{prefix}{}", index * 2),
    }
}

impl Projector {
    /// Reads a projector whose names begin with `prefix`, such as `model.mm_projector.`.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type, or an identity would have to change the width.
    pub fn load(from: &TensorFiles, prefix: &str, kind: ProjectorType, inputs: usize, outputs: usize) -> Result<Self> {
        let layers = (0..depth(kind, inputs, outputs, &from.config_file())?).map(|index| {
            let width = if index == 0 { inputs } else { outputs };
            let mut layer = Linear::load(from, &name(prefix, kind, index), outputs, width, true)?;
            // One name, whatever file it came from.
            layer.name = name("model.mm_projector.", kind, index);
            Ok(layer)
        });
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// A fresh projector, initialised as in PyTorch: uniform within `1 / sqrt(inputs)`.
    ///
    /// # Errors
    /// If an identity would have to change the width.
    pub fn fresh(kind: ProjectorType, inputs: usize, outputs: usize, seed: u64) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let layers = (0..depth(kind, inputs, outputs, "config.json".as_ref())?).map(|index| {
            let width = if index == 0 { inputs } else { outputs };
            let bound = 1.0 / (width as f32).sqrt();
            let weight = uniform(&mut random, outputs * width, bound);
            let bias = uniform(&mut random, outputs, bound);
            Linear {
                name: name("model.mm_projector.", kind, index),
                weight: Weight::Dense(Mat::from_host(outputs, width, weight)),
                bias: Some(Mat::from_host(1, outputs, bias)),
                lora: None,
            }
        });
        Ok(Self(layers.collect()))
    }

    /// `[rows, hidden]` from features `[rows, vision hidden]`.
    pub fn forward(&self, pass: &Pass, features: &Mat) -> Mat {
        let mut x = features.clone();
        for (index, layer) in self.0.iter().enumerate() {
            if index > 0 {
                x = tensor::activation(&pass.graph, &x, Activation::GeluErf);
            }
            x = layer.forward(pass, &x);
        }
        x
    }

    /// Lets all weights train.
    pub fn unfreeze(&mut self) {
        self.0.iter_mut().for_each(Linear::unfreeze);
    }

    /// Every matrix that trains, with its name, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        let mut visit = |parameter, mat: &mut Mat| visit(Parameter { tower: Tower::Projector, ..parameter }, mat);
        self.0.iter_mut().for_each(|layer| layer.trainable(&mut visit));
    }

    /// All tensors in f32 by name.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let mut all = Vec::new();
        self.0.iter().for_each(|layer| layer.tensors(&mut all));
        all
    }
}
