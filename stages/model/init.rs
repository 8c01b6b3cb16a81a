//! Models with random weights from a seed, in the Hugging Face layout. For pipelines that start from nothing.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::{
    config::{LanguageConfig, SiglipConfig},
    encoding::Encoding,
    error::Result,
    layers::fnv1a,
    weights::{NamedTensor, write_json, write_tensors},
};

/// `count` values from `-bound..bound`.
pub(crate) fn uniform(random: &mut ChaCha8Rng, count: usize, bound: f32) -> Vec<f32> {
    (0..count).map(|_| random.random_range(-bound..bound)).collect()
}

/// Collects tensors, each drawn from a stream of its own when it is written, so that one does not depend on another's
/// size, and only one is in memory at a time.
struct Maker {
    seed: u64,
    tensors: Vec<NamedTensor<'static>>,
}

impl Maker {
    fn new(seed: u64) -> Self {
        Self { seed, tensors: Vec::new() }
    }

    /// Uniform with standard deviation `deviation`: no transcendental function, so the same on every machine.
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

/// Writes `config.json` and `model.safetensors` of a language model that knows nothing yet.
pub fn write_language(folder: &Path, config: &LanguageConfig, seed: u64, encoding: Encoding) -> Result<()> {
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    // The residual stream gets two additions a block: scaled so that its variance does not grow with depth.
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

/// Writes `config.json` and `model.safetensors` of a SigLIP with random weights. Its patch embedding keeps what is
/// in a patch (a random projection), and its blocks add little, so that the frozen tower's features say what
/// the image shows.
pub fn write_siglip(folder: &Path, config: &SiglipConfig, seed: u64) -> Result<()> {
    let (width, inner, patch) = (config.hidden_size, config.intermediate_size, config.patch_size);
    let mut maker = Maker::new(seed);
    let conv = "vision_model.embeddings.patch_embedding";
    // Neighbouring pixels are alike, so a sum over a patch is larger than one over independent values.
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
