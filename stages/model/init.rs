//! Writes models with random weights from a seed, as Hugging Face folders. For pipelines that start from nothing.

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

/// Collects tensors. Each is drawn from its own stream when it is written, so that it does not depend on the sizes of others,
/// and only one is in memory at a time.
struct Maker {
    seed: u64,
    tensors: Vec<NamedTensor<'static>>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self { seed, tensors: Vec::new() }
    }

    /// Uniform with this standard deviation: without transcendental functions, so the same on every machine.
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

    /// `shape` is outputs, inputs, and whether there is a bias.
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
    // Each block adds twice to the residual stream: scaled so that its variance does not grow with depth.
    let branch = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
    let mut maker = Maker::new(seed);
    maker.random("model.embed_tokens.weight", &[vocab, hidden], 0.02);
    let family = config.family.description();
    let norm = |maker: &mut Maker, name: &str| {
        if family.rms_norms {
            maker.constant(&format!("{name}.weight"), &[hidden], 1.0);
        } else {
            maker.norm(name, hidden);
        }
    };
    for layer in 0..config.num_hidden_layers {
        for part in family.block_norms {
            norm(&mut maker, &format!("model.layers.{layer}.{part}"));
        }
        for linear in family.layers {
            let gain = if linear.part.ends_branch() { branch } else { 1.0 };
            maker.linear(&format!("model.layers.{layer}.{}", linear.name), config.linear_shape(linear), gain);
        }
    }
    norm(&mut maker, family.final_norm);
    if !config.tie_word_embeddings {
        maker.linear(family.head.name, config.linear_shape(&family.head), 0.5);
    }
    maker.write(folder, &config.to_json(), encoding)
}

/// Writes `config.json` and `model.safetensors` of a SigLIP with random weights. Its patch embedding is a random
/// projection, which keeps what a patch shows, and its blocks add little: so the features of the frozen tower describe the
/// image.
///
/// # Errors
/// If `folder` can't be written.
pub fn write_siglip(folder: &Path, config: &SiglipConfig, seed: u64) -> Result<()> {
    let (width, inner, patch) = (config.hidden_size, config.intermediate_size, config.patch_size);
    let mut maker = Maker::new(seed);
    let conv = "vision_model.embeddings.patch_embedding";
    // Neighbouring pixels are alike, so a sum over a patch is larger than a sum of independent values.
    maker.random(&format!("{conv}.weight"), &[width, 3, patch, patch], 2.0 / (3.0 * (patch * patch) as f64).sqrt());
    maker.constant(&format!("{conv}.bias"), &[width], 0.0);
    maker.random("vision_model.embeddings.position_embedding.weight", &[config.patches(), width], 0.3);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("vision_model.encoder.layers.{layer}.{part}");
        for norm in ["layer_norm1", "layer_norm2"] {
            maker.norm(&name(norm), width);
        }
        for part in ["q_proj", "k_proj", "v_proj"] {
            maker.linear(&name(&format!("self_attn.{part}")), (width, width, true), 1.0);
        }
        maker.linear(&name("self_attn.out_proj"), (width, width, true), 0.3);
        maker.linear(&name("mlp.fc1"), (inner, width, true), 1.0);
        maker.linear(&name("mlp.fc2"), (width, inner, true), 0.5);
    }
    maker.norm("vision_model.post_layernorm", width);
    maker.write(folder, &config.to_json(), Encoding::F32)
}
