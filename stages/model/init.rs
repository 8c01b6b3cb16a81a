//! Writes Hugging Face folders of models with seeded random weights, for pipelines that train from scratch.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    config::{LanguageConfig, VisionConfig},
    encoding::Encoding,
    error::Result,
    layers::{fnv1a, uniform},
    weights::{NamedTensor, write_json, write_tensors},
};

/// Collects the tensors of a model. Each is drawn from a separate random stream when it is written, so it does not
/// depend on the sizes of others and only one is in memory at a time.
struct Initializer {
    seed: u64,
    tensors: Vec<NamedTensor<'static>>,
}

impl Initializer {
    fn new(seed: u64) -> Self {
        Self { seed, tensors: Vec::new() }
    }

    /// Uniform with standard deviation `deviation`. Not normal: that needs transcendental functions, whose results
    /// differ between machines.
    fn random(&mut self, name: &str, shape: &[usize], deviation: f64) {
        let (seed, count) = (self.seed ^ fnv1a(name), shape.iter().product());
        let bound = (deviation * 3.0_f64.sqrt()) as f32;
        self.tensors.push(NamedTensor::new(name, shape.to_vec(), move || {
            uniform(&mut ChaCha8Rng::seed_from_u64(seed), count, bound).into()
        }));
    }

    fn constant(&mut self, name: &str, shape: &[usize], value: f32) {
        let count = shape.iter().product();
        self.tensors.push(NamedTensor::new(name, shape.to_vec(), move || vec![value; count].into()));
    }

    /// A weight `[outputs, inputs]` with standard deviation `gain / sqrt(inputs)`, and a bias of zeros if `bias`.
    fn linear(&mut self, name: &str, (outputs, inputs, bias): (usize, usize, bool), gain: f64) {
        self.random(&format!("{name}.weight"), &[outputs, inputs], gain / (inputs as f64).sqrt());
        if bias {
            self.constant(&format!("{name}.bias"), &[outputs], 0.0);
        }
    }

    fn norm(&mut self, name: &str, width: usize) {
        self.constant(&format!("{name}.weight"), &[width], 1.0);
        self.constant(&format!("{name}.bias"), &[width], 0.0);
    }

    fn write(self, folder: &Path, config: &serde_json::Value, encoding: Encoding) -> Result<()> {
        write_json(&folder.join("config.json"), config)?;
        write_tensors(&folder.join("model.safetensors"), self.tensors, encoding)
    }
}

/// Writes `config.json` and `model.safetensors` of a language model with random weights.
///
/// # Errors
/// If `folder` can't be written.
pub fn write_language(folder: &Path, config: &LanguageConfig, seed: u64, encoding: Encoding) -> Result<()> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    // Each block adds to the residual stream twice; this keeps the stream's variance independent of depth.
    let branch = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    let mut init = Initializer::new(seed);
    init.random("model.embed_tokens.weight", &[vocab, hidden], 0.02);
    let family = config.family.description();
    let norm = |init: &mut Initializer, name: &str| {
        if family.rms_norms {
            init.constant(&format!("{name}.weight"), &[hidden], 1.0);
        } else {
            init.norm(name, hidden);
        }
    };
    for layer in 0..config.num_hidden_layers {
        for part in family.block_norms {
            norm(&mut init, &format!("model.layers.{layer}.{part}"));
        }
        for linear in family.layers {
            let gain = if linear.part.ends_branch() { branch } else { 1.0 };
            init.linear(&format!("model.layers.{layer}.{}", linear.name), config.linear_shape(linear), gain);
        }
    }
    norm(&mut init, family.final_norm);
    if !config.tie_word_embeddings {
        init.linear(family.head.name, config.linear_shape(&family.head), 0.5);
    }
    init.write(folder, &config.to_json(), encoding)
}

/// Writes `config.json` and `model.safetensors` of a vision encoder with random weights. The patch embedding is a random
/// projection, which preserves the content of patches, and the blocks add little to it, so that the features of the
/// frozen encoder describe the image.
///
/// # Errors
/// If `folder` can't be written.
pub fn write_vision(folder: &Path, config: &VisionConfig, seed: u64) -> Result<()> {
    let (width, patch, description) = (config.hidden_size, config.patch_size, config.encoder.description());
    let (names, parts) = (&description.embeddings, &description.parts);
    let name = |part: &str| format!("{}{part}", description.prefix);
    let mut init = Initializer::new(seed);
    // Neighbouring pixels are correlated, so a sum over a patch is larger than one over independent values.
    let deviation = 2.0 / (3.0 * (patch * patch) as f64).sqrt();
    init.random(&format!("{}.weight", name(names.patch)), &[width, 3, patch, patch], deviation);
    if names.patch_bias {
        init.constant(&format!("{}.bias", name(names.patch)), &[width], 0.0);
    }
    let positions = config.tokens_before() - config.registers + config.patches();
    match names.class {
        None => init.random(&name(names.position), &[positions, width], 0.3),
        Some((class, 1)) => {
            init.random(&name(class), &[width], 0.3);
            init.random(&name(names.position), &[positions, width], 0.3);
        }
        Some((class, _)) => {
            init.random(&name(class), &[1, 1, width], 0.3);
            init.random(&name(names.position), &[1, positions, width], 0.3);
        }
    }
    if let Some(registers) = names.registers.filter(|_| config.registers > 0) {
        init.random(&name(registers), &[1, config.registers, width], 0.3);
    }
    if let Some(norm) = description.first_norm {
        init.norm(&name(norm), width);
    }
    // Queries, keys, values, the output of attention, both layers of the MLP.
    let gains = [1.0, 1.0, 1.0, 0.3, 1.0, 0.5];
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| name(&format!("{}.{layer}.{part}", description.blocks));
        for norm in parts.norms {
            init.norm(&name(norm), width);
        }
        for ((linear, (outputs, inputs)), gain) in parts.linears.iter().zip(config.linear_shapes()).zip(gains) {
            init.linear(&name(linear), (outputs, inputs, true), gain);
        }
        for scale in parts.scales.iter().flatten() {
            init.constant(&name(scale), &[width], 1.0);
        }
    }
    init.norm(&name(description.last_norm), width);
    init.write(folder, &config.to_json(), Encoding::F32)
}
