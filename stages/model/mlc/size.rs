//! The size of a model in MLC's container, from its configuration alone. Independent of weights.

use std::{borrow::Cow, path::Path};

use super::{Written, container::Plan, encoded};
use crate::{
    config::{LanguageConfig, VisionConfig},
    save::VISION_PREFIX,
    weights::NamedTensor,
};

/// The size of an Imp with these parts, of which the tower's first `used` layers compute the features.
///
/// # Errors
/// The name of a tensor that has none in MLC's models.
pub fn size(language: &LanguageConfig, vision: &VisionConfig, used: usize) -> Result<Written, String> {
    let mut all = Shapes::default();
    all.language(language);
    for (number, width) in [(0, vision.hidden_size), (2, language.hidden_size)] {
        all.linear(&format!("model.mm_projector.{number}"), language.hidden_size, width, true);
    }
    all.vision(vision, used);
    let weights = all.0.iter().map(|tensor| tensor.count() as u64).sum();
    let mut written = Written { weights, ..Written::default() };
    let plan = Plan::new(Path::new(""), encoded(language.family, all.0)?);
    plan.parts().for_each(|part| written.add(&part.name, part.bytes));
    Ok(written)
}

/// Tensors that have names and shapes only.
#[derive(Default)]
struct Shapes(Vec<NamedTensor<'static>>);

impl Shapes {
    fn vector(&mut self, name: String, length: usize) {
        self.0.push(NamedTensor::constant(name, vec![length], 0.0));
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize, bias: bool) {
        self.0.push(NamedTensor::matrix(name, outputs, inputs, |_| Cow::default()));
        if bias {
            self.vector(format!("{name}.bias"), outputs);
        }
    }

    fn norm(&mut self, config: &LanguageConfig, name: &str) {
        self.vector(format!("{name}.weight"), config.hidden_size);
        if !config.family.description().rms_norms {
            self.vector(format!("{name}.bias"), config.hidden_size);
        }
    }

    fn language(&mut self, config: &LanguageConfig) {
        let family = config.family.description();
        self.linear("model.embed_tokens", config.vocab_size, config.hidden_size, false);
        for layer in 0..config.num_hidden_layers {
            for part in family.block_norms {
                self.norm(config, &format!("model.layers.{layer}.{part}"));
            }
            for linear in family.layers {
                let (outputs, inputs, bias) = config.linear_shape(linear);
                self.linear(&format!("model.layers.{layer}.{}", linear.name), outputs, inputs, bias);
            }
        }
        self.norm(config, family.final_norm);
        if !config.tie_word_embeddings {
            let (outputs, inputs, bias) = config.linear_shape(&family.head);
            self.linear(family.head.name, outputs, inputs, bias);
        }
    }

    fn vision(&mut self, config: &VisionConfig, used: usize) {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let name = |part: &str| format!("{VISION_PREFIX}embeddings.{part}");
        self.0.push(NamedTensor::constant(name("patch_embedding.weight"), vec![width, 3, patch, patch], 0.0));
        self.vector(name("patch_embedding.bias"), width);
        self.linear(&name("position_embedding"), config.patches(), width, false);
        for layer in 0..used {
            for (part, shape) in config.layer_shapes() {
                let name = format!("{VISION_PREFIX}encoder.layers.{layer}.{part}");
                match (&shape[..], name.strip_suffix(".weight")) {
                    (&[outputs, inputs], Some(layer)) => self.linear(layer, outputs, inputs, false),
                    _ => self.vector(name, shape.iter().product()),
                }
            }
        }
    }
}
