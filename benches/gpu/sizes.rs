//! The sizes of the work: those of an Imp on Phi-2, or tiny ones for a machine without a GPU.

use std::path::PathBuf;

use imp_model::config::{LanguageConfig, VisionConfig};

/// The linear layers of a block of Phi, which have adapters. Those of `lm_head` would add logits to the comparison.
pub(crate) const TARGETS: [&str; 6] = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"];

pub(crate) struct Sizes {
    pub(crate) tiny: bool,
    pub(crate) language: LanguageConfig,
    /// The encoder of the case `features`.
    pub(crate) vision: VisionConfig,
    /// Of the case `lora`: sequences, and tokens beside the patches of an image. Half of the tokens are labelled.
    pub(crate) sequences: usize,
    pub(crate) text: usize,
    pub(crate) rank: usize,
    /// Of the case `features`.
    pub(crate) images: usize,
    /// Of the cases `prefill` and `decode`: prompts, tokens beside the patches, and tokens of an answer.
    pub(crate) prompts: usize,
    pub(crate) question: usize,
    pub(crate) answer: usize,
    pub(crate) repetitions: usize,
}

impl Sizes {
    pub(crate) fn new(tiny: bool) -> Self {
        if tiny { Self::tiny() } else { Self::phi_2() }
    }

    fn phi_2() -> Self {
        Self {
            tiny: false,
            language: LanguageConfig::phi(51_200, 2560, 32, 32, 32),
            vision: VisionConfig::so400m_patch14_384(),
            sequences: 4,
            text: 256,
            rank: 256,
            images: 16,
            prompts: 16,
            question: 64,
            answer: 64,
            repetitions: 7,
        }
    }

    fn tiny() -> Self {
        let vision = VisionConfig {
            hidden_size: 48,
            intermediate_size: 96,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            image_size: 28,
            ..VisionConfig::so400m_patch14_384()
        };
        Self {
            tiny: true,
            language: LanguageConfig::phi(200, 64, 3, 4, 8),
            vision,
            sequences: 2,
            text: 8,
            rank: 4,
            images: 2,
            prompts: 2,
            question: 5,
            answer: 3,
            repetitions: 2,
        }
    }

    /// The folder of the models.
    pub(crate) fn models(&self) -> PathBuf {
        PathBuf::from("target/bench-models").join(if self.tiny { "gpu-tiny" } else { "gpu" })
    }
}
