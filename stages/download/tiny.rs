//! `builtin:tiny-phi` and `builtin:tiny-siglip`: Hugging Face folders of small models with random weights.
//! Does not know what they will be trained on, but for the words that the tokenizer should know.

use std::path::Path;

use imp_model::{
    ModelError,
    config::{LanguageConfig, SiglipConfig},
    init,
    save::DType,
    tensor::Activation,
};
use serde_json::json;
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerBuilder,
    models::bpe::{BPE, BpeTrainerBuilder},
    pre_tokenizers::byte_level::ByteLevel,
};

use super::{ModelOptions, shapes};
use crate::{
    Job, StageError,
    forecast::{Outlook, Tower},
    preprocess::template::{PAD, PHI2_END, SYSTEM},
};

/// Images whose texts the tokenizer learns from: the grammar is small, so these have all of it.
const CORPUS_IMAGES: usize = 300;
/// Turns in a usual conversation of that data.
const CONVERSATION_TURNS: usize = 16;
/// The two tokens that are no merges.
const SPECIAL_TOKENS: usize = 2;

/// Sizes that the pipeline leaves open.
pub(super) struct Usual {
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
}

/// Of the language model.
pub(super) const PHI: Usual = Usual { hidden_size: 128, layers: 4, heads: 8 };
/// Of the vision encoder.
pub(super) const SIGLIP: Usual = Usual { hidden_size: 256, layers: 2, heads: 4 };
/// Pixels in a row of an image.
pub(super) const IMAGE_SIZE: usize = 64;
/// Pixels in a row of a patch: a quarter of a drawn image, in which one object stands. With smaller patches the model must
/// learn first which of them belong together, and that it learns by chance in so short a run.
pub(super) const PATCH_SIZE: usize = 32;

/// Writes a Phi with its tokenizer.
pub(super) fn write_phi(job: &Job, options: &ModelOptions) -> Result<(), StageError> {
    let out = job.output();
    let end = write_tokenizer(&out, vocab_size(options), job.seed())?;
    let config =
        LanguageConfig { bos_token_id: Some(end - 1), eos_token_id: vec![end - 1], ..phi(options, end as usize + 1) };
    init::write_language(&out, &config, job.seed(), DType::F32).map_err(|error| model_error(&error))
}

fn vocab_size(options: &ModelOptions) -> usize {
    options.vocab_size.unwrap_or(512)
}

/// The Phi's sizes, for a tokenizer of so many tokens.
fn phi(options: &ModelOptions, tokens: usize) -> LanguageConfig {
    let hidden_size = options.hidden_size.unwrap_or(PHI.hidden_size);
    let heads = options.heads.unwrap_or(PHI.heads);
    // As in Phi-2, the embedding has rows beyond the tokenizer's last token. Half of each head is rotated.
    LanguageConfig::phi(
        tokens.next_multiple_of(64),
        hidden_size,
        options.layers.unwrap_or(PHI.layers),
        heads,
        hidden_size / heads.max(1) / 2,
    )
}

/// What [`write_phi`] will write.
pub(super) fn phi_outlook(options: &ModelOptions) -> Outlook {
    let config = phi(options, vocab_size(options));
    let bytes = (DType::F32.size() * config.parameters()) as u64;
    Outlook::of_language_model(Some(config), bytes)
}

/// Writes a `SigLIP` and the description of its image processor.
pub(super) fn write_siglip(job: &Job, options: &ModelOptions) -> Result<(), StageError> {
    let (out, config) = (job.output(), siglip(options));
    let image_size = config.image_size;
    init::write_siglip(&out, &config, job.seed()).map_err(|error| model_error(&error))?;
    let processor = json!({
        "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor",
        "resample": 3, "rescale_factor": 1.0 / 255.0, "size": {"height": image_size, "width": image_size},
    });
    write_json(&out.join("preprocessor_config.json"), &processor)
}

fn siglip(options: &ModelOptions) -> SiglipConfig {
    let hidden_size = options.hidden_size.unwrap_or(SIGLIP.hidden_size);
    SiglipConfig {
        hidden_size,
        intermediate_size: 2 * hidden_size,
        num_hidden_layers: options.layers.unwrap_or(SIGLIP.layers),
        num_attention_heads: options.heads.unwrap_or(SIGLIP.heads),
        image_size: options.image_size.unwrap_or(IMAGE_SIZE),
        patch_size: options.patch_size.unwrap_or(PATCH_SIZE),
        layer_norm_eps: 1e-6,
        hidden_act: Activation::GeluTanh,
    }
}

/// What [`write_siglip`] will write.
pub(super) fn siglip_outlook(options: &ModelOptions) -> Outlook {
    let config = siglip(options);
    let bytes = (DType::F32.size() * config.parameters()) as u64;
    Outlook { vision: Some(Tower { config, bytes }), ..Outlook::default() }
}

fn model_error(error: &ModelError) -> StageError {
    StageError::failed(error.to_string(), "check the values under `[model]`")
}

/// Trains and writes a byte-level BPE tokenizer; returns the id of its last token, `</s>`.
fn write_tokenizer(folder: &Path, vocab_size: usize, seed: u64) -> Result<u32, StageError> {
    let failed = |error: tokenizers::Error| {
        StageError::failed(format!("the tokenizer can't be made: {error}"), "report this as a bug")
    };
    let tokenizer = train_tokenizer(vocab_size, seed).map_err(failed)?;
    let path = folder.join("tokenizer.json");
    let text = tokenizer.to_string(true).map_err(failed)?;
    std::fs::write(&path, text + "\n").map_err(StageError::io(&path))?;
    let config = json!({
        "add_bos_token": false, "add_prefix_space": false, "bos_token": PAD, "clean_up_tokenization_spaces": true,
        "eos_token": PAD, "model_max_length": 2048, "pad_token": PAD, "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": PAD,
    });
    write_json(&folder.join("tokenizer_config.json"), &config)?;
    tokenizer
        .token_to_id(PHI2_END)
        .ok_or_else(|| StageError::failed("the tokenizer has no `</s>`", "report this as a bug"))
}

/// Learns merges from the texts that the model will see, the system prompt included. The order of merges depends on
/// counts and ids only, so the same seed gives the same file.
pub(super) fn train_tokenizer(vocab_size: usize, seed: u64) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)))
        .build()?;
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size.saturating_sub(SPECIAL_TOKENS))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut corpus = shapes::corpus(seed, CORPUS_IMAGES);
    // Every conversation begins with the system prompt.
    let systems = corpus.len() / CONVERSATION_TURNS;
    corpus.extend(std::iter::repeat_n(format!("{SYSTEM} USER:"), systems));
    tokenizer.train(&mut trainer, corpus.iter())?;
    // As in Phi-2, the special tokens come after the merges, and `</s>` after them.
    tokenizer.add_special_tokens(&[AddedToken::from(PAD, true), AddedToken::from(PHI2_END, true)]);
    Ok(widen(&tokenizer))
}

/// The same tokenizer with its parts as enums, the type that can be read back from a file.
fn widen(tokenizer: &tokenizers::TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>) -> Tokenizer {
    let mut wide = Tokenizer::new(ModelWrapper::BPE(tokenizer.get_model().clone()));
    wide.with_pre_tokenizer(tokenizer.get_pre_tokenizer().copied().map(PreTokenizerWrapper::ByteLevel))
        .with_post_processor(tokenizer.get_post_processor().copied().map(PostProcessorWrapper::ByteLevel))
        .with_decoder(tokenizer.get_decoder().copied().map(DecoderWrapper::ByteLevel));
    wide.add_special_tokens(&[AddedToken::from(PAD, true), AddedToken::from(PHI2_END, true)]);
    wide
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<(), StageError> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    std::fs::write(path, text).map_err(StageError::io(path))
}
