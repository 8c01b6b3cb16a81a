//! Writes an Imp as two GGUF files: its language model, quantized, and its vision tower with the projector, as llama.cpp and the
//! programs around it load them. `docs/deploy.md` says what was compared. Independent of how a tokenizer reads texts.

mod container;
pub(super) mod language;
mod mixture;
pub(super) mod projector;
pub(super) mod style;
mod vocabulary;

use std::path::Path;

pub use mixture::Mixture;
pub use vocabulary::Speech;

use super::rotary;
use crate::{
    config::{Encoder, ImpConfig, LanguageConfig, ProjectorType, VisionConfig},
    encoding::Encoding,
    error::{ModelError, Result},
    family::Family,
    imp::Imp,
    layers::Importance,
    tensor::Activation,
    weights::NamedTensor,
};
use container::Keys;

/// The file of the language model.
pub const MODEL: &str = "model.gguf";
/// The file of vision tower and projector.
pub const MMPROJ: &str = "mmproj.gguf";

/// What the two files hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the language model's tensors, in bytes.
    pub model: u64,
    /// Size of vision tower and projector.
    pub mmproj: u64,
    /// Number of weights of the language model.
    pub weights: u64,
    /// Number of matrices of the language model.
    pub matrices: usize,
    /// Of these, in another encoding than the mixture's, whose blocks don't divide their rows.
    pub replaced: usize,
}

/// Why llama.cpp has no place for such a model, if so.
pub fn unfit(joined: &ImpConfig, language: &LanguageConfig, tower: &VisionConfig) -> Option<String> {
    if joined.mm_projector_type != ProjectorType::Mlp(2) {
        let kind = joined.mm_projector_type;
        return Some(format!("llama.cpp's projector has two layers (mlp2x_gelu), and the model's is {kind}"));
    }
    if let Some(message) = rotary::unfit(language) {
        return Some(message);
    }
    let others = language.family == Family::Phi && language.hidden_act != Activation::GeluTanh;
    if others || (tower.encoder == Encoder::Siglip && tower.hidden_act != Activation::GeluTanh) {
        return Some(
            "llama.cpp's Phi and SigLIP have the activation gelu_pytorch_tanh, and the model has another".into(),
        );
    }
    if language.family == Family::Phi && language.tie_word_embeddings {
        return Some("llama.cpp's Phi has an output layer of its own, and the model's is its embedding".into());
    }
    let name = tower.encoder.description().whole.0;
    (tower.encoder != Encoder::Siglip).then(|| {
        format!(
            "a vision tower of the type {name} can't be written for llama.cpp, which takes the class token for a patch (its issue \
             25814), only a SigLIP can; `format = \"imp\"` writes any"
        )
    })
}

/// Writes [`MODEL`] and [`MMPROJ`] to `folder`. The language model keeps best what `importance` says that matters.
///
/// # Errors
/// If llama.cpp has no projector of the model's type or no tokenizer that does what the model's does, a value is too large for its
/// type, or `folder` can't be written.
pub fn write(
    model: &Imp,
    speech: &Speech<'_>,
    mixture: Mixture,
    importance: &Importance,
    folder: &Path,
) -> Result<Written> {
    let (text, vision) = (folder.join(MODEL), folder.join(MMPROJ));
    if let Some(message) = unfit(&model.config, &model.llm.config, &model.vision.config) {
        let file = if rotary::unfit(&model.llm.config).is_some() { &text } else { &vision };
        return Err(ModelError::file(file, message));
    }
    let family = model.llm.config.family;
    // llama.cpp looks for the family in the name, to read special tokens as Phi-3's tokenizer does.
    let name = if vocabulary::strips_after_special(speech.tokenizer) { "Imp Phi-3" } else { "Imp" };
    let mut keys = Keys::default();
    let trained = model.config.tokenizer_model_max_length;
    language::describe(&mut keys, &model.llm.merged_config(), trained, mixture, name);
    vocabulary::describe(&mut keys, speech, family, model.llm.config.vocab_size)
        .map_err(|message| ModelError::file(&text, message))?;
    let extra = |file: &Path| {
        let file = file.to_path_buf();
        move |tensor| ModelError::Extra { file, tensor }
    };
    let mut plan = language::plan(&model.llm, mixture, importance).map_err(extra(&text))?;
    let weights = plan.tensors.iter().map(|(tensor, _)| tensor.count() as u64).sum();
    for (name, values) in rotary::tensors(&model.llm.config) {
        let tensor = NamedTensor::new(name, vec![values.len()], move || values.clone().into());
        plan.tensors.push((tensor, Encoding::F32));
    }
    let bytes = container::write(&text, &keys, plan.tensors)?;
    let mut keys = Keys::default();
    projector::describe(&mut keys, model, mixture, name);
    let mmproj = container::write(&vision, &keys, projector::tensors(model, mixture).map_err(extra(&vision))?)?;
    Ok(Written { model: bytes, mmproj, weights, matrices: plan.matrices, replaced: plan.replaced })
}
