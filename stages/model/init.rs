//! Writes Hugging Face folders of models with seeded random weights, for pipelines that train from scratch.

use std::path::Path;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::{
    config::{LanguageConfig, SiglipConfig},
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

/// Writes `config.json` and `model.safetensors` of a SigLIP with random weights. The patch embedding is a random
/// projection, which preserves the content of patches, and the blocks add little to it, so that the features of the
/// frozen encoder describe the image.
///
/// # Errors
/// If `folder` can't be written.
pub fn write_siglip(folder: &Path, config: &SiglipConfig, seed: u64) -> Result<()> {
    let (width, inner, patch) = (config.hidden_size, config.intermediate_size, config.patch_size);
    let mut init = Initializer::new(seed);
    let conv = "vision_model.embeddings.patch_embedding";
    // Neighbouring pixels are correlated, so a sum over a patch is larger than one over independent values.
    init.random(&format!("{conv}.weight"), &[width, 3, patch, patch], 2.0 / (3.0 * (patch * patch) as f64).sqrt());
    init.constant(&format!("{conv}.bias"), &[width], 0.0);
    init.random("vision_model.embeddings.position_embedding.weight", &[config.patches(), width], 0.3);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("vision_model.encoder.layers.{layer}.{part}");
        for norm in ["layer_norm1", "layer_norm2"] {
            init.norm(&name(norm), width);
        }
        for part in ["q_proj", "k_proj", "v_proj"] {
            init.linear(&name(&format!("self_attn.{part}")), (width, width, true), 1.0);
        }
        init.linear(&name("self_attn.out_proj"), (width, width, true), 0.3);
        init.linear(&name("mlp.fc1"), (inner, width, true), 1.0);
        init.linear(&name("mlp.fc2"), (width, inner, true), 0.5);
    }
    init.norm("vision_model.post_layernorm", width);
    init.write(folder, &config.to_json(), Encoding::F32)
}
