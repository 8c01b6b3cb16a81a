//! Byte-level BPE tokenizers for the built-in language models, trained on the texts of `builtin:shapes`. Special tokens are
//! those of the family, in the same positions. Independent of the models' sizes and weights.

use imp_model::config::Family;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    TokenizerBuilder, TokenizerImpl,
    models::bpe::{BPE, BpeTrainerBuilder},
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

use crate::{
    download::shapes,
    text::template::{BEGIN, PAD, SYSTEM, Template},
};

/// Images whose texts the tokenizer is trained on. The grammar is small, so they cover all of it.
const CORPUS_IMAGES: usize = 300;
/// Turns in a typical conversation of that data.
const CONVERSATION_TURNS: usize = 16;

/// The conversation template of the family.
fn template(family: Family) -> Template {
    match family {
        Family::Phi => Template::Phi2,
        Family::Qwen2 | Family::Llama => Template::Qwen2,
        Family::Phi3 => Template::Phi3,
    }
}

/// The token that begins a text (`bos_token`).
pub(super) fn first_token(family: Family) -> &'static str {
    if family == Family::Phi3 { BEGIN } else { PAD }
}

/// The content of `tokenizer_config.json`.
pub(super) fn description(family: Family) -> Value {
    json!({
        "add_bos_token": family == Family::Phi3, "add_prefix_space": false, "bos_token": first_token(family),
        "clean_up_tokenization_spaces": true, "eos_token": PAD, "model_max_length": 2048, "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": PAD,
    })
}

/// Learns merges from the texts that the model will see, including the system prompt. The order of merges depends only on
/// counts and ids, so the same seed gives the same file.
pub(in crate::download) fn train(family: Family, vocab_size: usize, seed: u64) -> tokenizers::Result<Tokenizer> {
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
        .with_post_processor(Some(ByteLevel::new(false, false, true)))
        .with_decoder(Some(ByteLevel::new(false, true, true)))
        .build()?;
    // Special tokens follow the merges, as in the tokenizers of Phi-2 and Qwen.
    let special: Vec<AddedToken> =
        template(family).tokens().iter().map(|token| AddedToken::from(*token, true)).collect();
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(vocab_size.saturating_sub(special.len()))
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut corpus = shapes::corpus(seed, CORPUS_IMAGES);
    // Every conversation begins with the system prompt.
    let systems = corpus.len() / CONVERSATION_TURNS;
    corpus.extend(std::iter::repeat_n(format!("{SYSTEM} USER:"), systems));
    tokenizer.train(&mut trainer, corpus.iter())?;
    let mut tokenizer = widen(&tokenizer);
    tokenizer.add_special_tokens(&special);
    if family == Family::Phi3 {
        let begin = tokenizer.token_to_id(BEGIN).unwrap_or_default();
        let template = TemplateProcessing::builder()
            .try_single(format!("{BEGIN} $A"))?
            .special_tokens(vec![(BEGIN, begin)])
            .build()?;
        tokenizer.with_post_processor(Some(template));
    }
    Ok(tokenizer)
}

/// Converts the tokenizer to the type that tokenizer files are read into, whose components are enums.
fn widen(tokenizer: &TokenizerImpl<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>) -> Tokenizer {
    let mut wide = Tokenizer::new(ModelWrapper::BPE(tokenizer.get_model().clone()));
    wide.with_pre_tokenizer(tokenizer.get_pre_tokenizer().copied().map(PreTokenizerWrapper::ByteLevel))
        .with_post_processor(tokenizer.get_post_processor().copied().map(PostProcessorWrapper::ByteLevel))
        .with_decoder(tokenizer.get_decoder().copied().map(DecoderWrapper::ByteLevel));
    wide
}
