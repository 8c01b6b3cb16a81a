//! From vision features to embeddings of the language model: `mlp{N}x_gelu`, `linear` or `identity`.
//! Reference: LLaVA's `multimodal_projector/builder.py`.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    error::{ModelError, Result},
    init,
    layers::{Linear, Pass},
    tensor::{self, Activation, Mat, Weight},
    weights::{Checkpoint, NamedTensor},
};

/// Linear layers with GELU (erf) between them.
pub struct Projector(Vec<Linear>);

/// How many linear layers a type has; else what is wrong with it.
///
/// # Errors
/// In words, if there is no such type.
pub fn depth(kind: &str) -> std::result::Result<usize, String> {
    let layers = match kind {
        "identity" => Some(0),
        "linear" => Some(1),
        _ => kind.strip_prefix("mlp").and_then(|rest| rest.strip_suffix("x_gelu")).and_then(|n| n.parse().ok()),
    };
    layers
        .filter(|layers| *layers <= 16)
        .ok_or_else(|| format!("`{kind}` is none of mlp2x_gelu, mlp{{N}}x_gelu (N up to 16), linear, identity"))
}

fn check(kind: &str, inputs: usize, outputs: usize, config: &Path) -> Result<usize> {
    let wrong = |message: String| ModelError::file(config, format!("mm_projector_type {message}"));
    match depth(kind).map_err(wrong)? {
        0 if inputs != outputs => {
            Err(wrong(format!("`identity` needs towers of one width, and they have {inputs} and {outputs}")))
        }
        layers => Ok(layers),
    }
}

/// Where layer `index` stands in `nn.Sequential`: there is a GELU between two linear layers.
fn name(prefix: &str, kind: &str, index: usize) -> String {
    // A single linear layer of type `linear` is no Sequential and has no index.
    if kind == "linear" { prefix.trim_end_matches('.').into() } else { format!("{prefix}{}", index * 2) }
}

impl Projector {
    /// Reads a projector whose names begin with `prefix`, such as `model.mm_projector.`.
    pub fn load(from: &Checkpoint, prefix: &str, kind: &str, inputs: usize, outputs: usize) -> Result<Self> {
        let layers = (0..check(kind, inputs, outputs, &from.config_file())?).map(|index| {
            let width = if index == 0 { inputs } else { outputs };
            let mut layer = Linear::load(from, &name(prefix, kind, index), outputs, width, true)?;
            // One name, whatever file it came from.
            layer.name = name("model.mm_projector.", kind, index);
            Ok(layer)
        });
        Ok(Self(layers.collect::<Result<_>>()?))
    }

    /// A fresh projector, initialised as PyTorch does: uniform within `1 / sqrt(inputs)`.
    pub fn fresh(kind: &str, inputs: usize, outputs: usize, seed: u64) -> Result<Self> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let layers = (0..check(kind, inputs, outputs, "config.json".as_ref())?).map(|index| {
            let width = if index == 0 { inputs } else { outputs };
            let bound = 1.0 / (width as f32).sqrt();
            let weight = init::uniform(&mut random, outputs * width, bound);
            let bias = init::uniform(&mut random, outputs, bound);
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
    pub fn trainable(&mut self, visit: &mut dyn FnMut(String, &mut Mat)) {
        self.0.iter_mut().for_each(|layer| layer.trainable(visit));
    }

    /// All tensors in f32 by name.
    pub fn tensors(&self) -> Vec<NamedTensor<'_>> {
        let mut all = Vec::new();
        self.0.iter().for_each(|layer| layer.tensors(&mut all));
        all
    }
}
