//! `builtin:tiny-phi`, `builtin:tiny-qwen2`, `builtin:tiny-phi3`, `builtin:tiny-siglip`, `builtin:tiny-clip` and
//! `builtin:tiny-dinov2`: Hugging Face folders of small models with random weights. Independent of the training data, except that the tokenizer is trained on its words.

pub(super) mod tokenizer;

use std::path::Path;

use imp_model::{
    ModelError,
    config::{Encoder, Family, LanguageConfig, VisionConfig},
    encoding::Encoding,
    init,
    tensor::Activation,
};
use serde_json::json;

use super::config::ModelOptions;
use crate::{
    Job, StageError,
    contract::forecast::{Outlook, Tower},
    text::template::PAD,
};

/// Default sizes of a built-in model.
pub(super) struct Defaults {
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
}

/// Defaults of the language model.
pub(super) const LANGUAGE: Defaults = Defaults { hidden_size: 128, layers: 4, heads: 8 };
/// Defaults of the vision encoder.
pub(super) const VISION: Defaults = Defaults { hidden_size: 256, layers: 2, heads: 4 };
/// Width and height of an image in pixels.
pub(super) const IMAGE_SIZE: usize = 64;
/// Width and height of a patch in pixels: a patch is one cell of a drawn image and holds one object. With smaller patches
/// the model would first have to learn which of them belong together, which is a matter of luck in so short a run.
pub(super) const PATCH_SIZE: usize = 32;

/// Writes a language model with its tokenizer.
pub(super) fn write_language(job: &Job, family: Family, options: &ModelOptions) -> Result<(), StageError> {
    let failed = |error: tokenizers::Error| {
        StageError::failed(format!("can't train the tokenizer: {error}"), "report this as a bug")
    };
    let out = job.output();
    let tokenizer = tokenizer::train(family, vocab_size(options), job.seed()).map_err(failed)?;
    let path = out.join("tokenizer.json");
    let text = tokenizer.to_string(true).map_err(failed)?;
    std::fs::write(&path, text + "\n").map_err(StageError::io(&path))?;
    write_json(&out.join("tokenizer_config.json"), &tokenizer::description(family))?;
    let config = LanguageConfig {
        bos_token_id: tokenizer.token_to_id(tokenizer::first_token(family)),
        eos_token_id: tokenizer.token_to_id(PAD).into_iter().collect(),
        ..language(family, options, tokenizer.get_vocab_size(true))
    };
    init::write_language(&out, &config, job.seed(), Encoding::F32).map_err(|error| model_error(&error))
}

fn vocab_size(options: &ModelOptions) -> usize {
    options.vocab_size.unwrap_or(512)
}

/// The language model's configuration for a tokenizer of `tokens` tokens.
fn language(family: Family, options: &ModelOptions, tokens: usize) -> LanguageConfig {
    let hidden_size = options.hidden_size.unwrap_or(LANGUAGE.hidden_size);
    let heads = options.heads.unwrap_or(LANGUAGE.heads);
    let head_dim = hidden_size / heads.max(1);
    // As in Phi-2, the embedding has more rows than the tokenizer has tokens, and half of each head is rotated.
    let phi = LanguageConfig::phi(
        tokens.next_multiple_of(64),
        hidden_size,
        options.layers.unwrap_or(LANGUAGE.layers),
        heads,
        head_dim / 2,
    );
    if family == Family::Phi {
        return phi;
    }
    LanguageConfig {
        family,
        // Three matrices of this size have as many weights as Phi's two.
        intermediate_size: 8 * hidden_size / 3,
        rotary_dims: head_dim,
        hidden_act: Activation::Silu,
        ..phi
    }
}

/// Predicts what [`write_language`] will write.
pub(super) fn language_outlook(family: Family, options: &ModelOptions) -> Outlook {
    let config = language(family, options, vocab_size(options));
    let bytes = (Encoding::F32.block().bytes * config.parameters()) as u64;
    Outlook::of_language_model(Some(config), bytes)
}

/// Writes a vision encoder and the configuration of its image processor.
pub(super) fn write_vision(job: &Job, encoder: Encoder, options: &ModelOptions) -> Result<(), StageError> {
    let (out, config) = (job.output(), vision(encoder, options));
    init::write_vision(&out, &config, job.seed()).map_err(|error| model_error(&error))?;
    let mut processor = encoder.processor_json(&config.images, config.image_size);
    if let (Encoder::Siglip, Some(keys)) = (encoder, processor.as_object_mut()) {
        keys.remove("do_convert_rgb");
        keys.insert("processor_class".into(), json!("SiglipProcessor"));
    }
    write_json(&out.join("preprocessor_config.json"), &processor)
}

fn vision(encoder: Encoder, options: &ModelOptions) -> VisionConfig {
    let hidden_size = options.hidden_size.unwrap_or(VISION.hidden_size);
    let (layers, heads) = (options.layers.unwrap_or(VISION.layers), options.heads.unwrap_or(VISION.heads));
    let image_size = options.image_size.unwrap_or(IMAGE_SIZE);
    VisionConfig {
        intermediate_size: 2 * hidden_size,
        patch_size: options.patch_size.unwrap_or(PATCH_SIZE),
        ..VisionConfig::new(encoder, hidden_size, layers, heads, image_size)
    }
}

/// Predicts what [`write_vision`] will write.
pub(super) fn vision_outlook(encoder: Encoder, options: &ModelOptions) -> Outlook {
    let config = vision(encoder, options);
    let bytes = (Encoding::F32.block().bytes * config.parameters()) as u64;
    Outlook { vision: Some(Tower { config, bytes }), ..Outlook::default() }
}

fn model_error(error: &ModelError) -> StageError {
    StageError::failed(error.to_string(), "check the values under `[model]`")
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), StageError> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(StageError::io(path))
}
