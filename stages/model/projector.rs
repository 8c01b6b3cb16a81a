//! The projector from image features to embeddings of the language model: `mlp{N}x_gelu`, `linear` or `identity`.
//! Reference: LLaVA's `multimodal_projector/builder.py`.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    config::ProjectorType,
    error::{ModelError, Result},
    layers::{Linear, Parameter, Pass, Tower, uniform},
    tensor::{self, Activation, Mat, Place, Weight},
    weights::{NamedTensor, TensorFiles},
};

/// Linear layers with a GELU (erf) between consecutive ones.
#[derive(Clone)]
pub struct Projector(Vec<Linear>);

/// The number of linear layers, if the type fits the widths.
fn depth(kind: ProjectorType, inputs: usize, outputs: usize, config: &Path) -> Result<usize> {
    if kind.depth() == 0 && inputs != outputs {
        let message = format!(
            "mm_projector_type `{kind}` requires equal widths, but they are {inputs} (vision) and {outputs} (language)"
        );
        return Err(ModelError::file(config, message));
    }
    Ok(kind.depth())
}

/// The name of layer `index`: its index in LLaVA's `nn.Sequential`, where GELUs have the odd indices.
fn name(prefix: &str, kind: ProjectorType, index: usize) -> String {
    match kind {
        // A bare layer, not in a Sequential.
        ProjectorType::Linear => prefix.trim_end_matches('.').into(),
        ProjectorType::Identity | ProjectorType::Mlp(_) => format!("{prefix}{}", index * 2),
    }
}

impl Projector {
    /// Reads a projector whose tensor names start with `prefix`, such as `model.mm_projector.`.
    ///
    /// # Errors
    /// If a tensor is missing or has the wrong shape or type, or `kind` is the identity and `inputs` is not `outputs`.
    pub fn load(from: &TensorFiles, prefix: &str, kind: ProjectorType, inputs: usize, outputs: usize) -> Result<Self> {
        let layers = (0..depth(kind, inputs, outputs, &from.config_file())?).map(|index| {
            let width = if index == 0 { inputs } else { outputs };
            let mut layer = Linear::load(from, &name(prefix, kind, index), outputs, width, true)?;
            // The name to write is the same for all prefixes.
            layer.name = name("model.mm_projector.", kind, index);
            Ok(layer)
        });
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// A new projector, initialized as in PyTorch: uniform within `1 / sqrt(in)` of each layer.
    ///
    /// # Errors
    /// If `kind` is the identity and `inputs` is not `outputs`.
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

    /// Returns embeddings `[rows, hidden]` from features `[rows, vision hidden]`.
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

    /// Moves all weights to `place`.
    pub fn move_to(&mut self, place: &Place) {
        self.0.iter_mut().for_each(|layer| layer.move_to(place));
    }

    /// Makes all weights trainable.
    pub fn unfreeze(&mut self) {
        self.0.iter_mut().for_each(Linear::unfreeze);
    }

    /// Visits every trainable matrix with its name and role, in a fixed order.
    pub fn trainable(&mut self, visit: &mut dyn FnMut(Parameter, &mut Mat)) {
        let mut visit = |parameter, mat: &mut Mat| visit(Parameter { tower: Tower::Projector, ..parameter }, mat);
        self.0.iter_mut().for_each(|layer| layer.trainable(&mut visit));
    }

    /// All tensors in f32.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let mut all = Vec::new();
        self.0.iter().for_each(|layer| layer.tensors(&mut all));
        all
    }
}
