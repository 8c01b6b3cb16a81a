//! The layout of transformers' `LlavaForConditionalGeneration`, which plain transformers, vLLM and others load without code of
//! ours: SigLIP or CLIP tower, two-layer projector, and a Phi, Qwen2, Phi-3 or Llama. Independent of tokenizers.
//!
//! Tensor names are those of before transformers 4.52, which every version reads. `docs/deploy.md` says what was compared.

mod head;

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    config::{ImpConfig, ProjectorType, VisionConfig, llava_json},
    encoding::Encoding,
    error::{ModelError, Result},
    imp::Imp,
    save::dtype_name,
    weights::{Encoded, NamedTensor, write_json, write_sharded},
};
use head::Folded;

const TOWER_PREFIX: &str = "vision_tower.";
/// Rows of the embedding are added in multiples of this many.
const ROWS: usize = 64;

/// The tokens that programs have to know beside the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Stands for one image feature in a text.
    pub image: u32,
    /// Any of these ends an answer; the first is the template's own.
    pub stop: Vec<u32>,
    /// Fills shorter sequences of a batch.
    pub pad: u32,
}

/// Why transformers' Llava has no place for such a model, if so.
pub fn unfit(joined: &ImpConfig, tower: &VisionConfig) -> Option<String> {
    if joined.mm_projector_type != ProjectorType::Mlp(2) {
        let kind = joined.mm_projector_type;
        return Some(format!(
            "transformers' Llava has a projector of two layers (mlp2x_gelu), and the model's is {kind}"
        ));
    }
    let message = "transformers' Llava has no place for a DINOv2 as vision tower: choose `format = \"imp\"`";
    tower.encoder.is_dinov2().then(|| message.into())
}

/// Writes a model in transformers' Llava layout: `config.json` and weights, in files of at most `largest` bytes.
///
/// # Errors
/// If the layout has no place for the projector's type, a safetensors file can't hold `encoding`, a value is too large for it,
/// or `folder` can't be written.
pub fn write(model: &Imp, tokens: &Tokens, encoding: Encoding, largest: u64, folder: &Path) -> Result<()> {
    let config = folder.join("config.json");
    if let Some(message) = unfit(&model.config, &model.vision.config) {
        return Err(ModelError::file(&config, message));
    }
    let rows = rows(model, tokens);
    let folded = Folded::of(model.llm.final_norm(), model.llm.head());
    let mut value = json(model, tokens, rows, folded.is_some());
    for (key, both) in [
        ("torch_dtype", json!(dtype_name(encoding))),
        ("pad_token_id", json!(tokens.pad)),
        ("eos_token_id", json!(tokens.stop.first())),
    ] {
        value["text_config"][key] = both.clone();
        value[key] = both;
    }
    write_json(&config, &value)?;
    let tensors = tensors(model, rows, folded.as_ref());
    write_sharded(folder, tensors.into_iter().map(|tensor| Encoded::plain(tensor, encoding)).collect(), largest)
}

/// Rows of the embedding: as many as the model has, and more only if the image token has none.
fn rows(model: &Imp, tokens: &Tokens) -> usize {
    let (rows, image) = (model.llm.config.vocab_size, tokens.image as usize);
    if image < rows { rows } else { (image + 1).next_multiple_of(ROWS) }
}

fn json(model: &Imp, tokens: &Tokens, rows: usize, folded: bool) -> Value {
    let mut language = model.llm.merged_config();
    language.vocab_size = rows;
    // The head that absorbed a bias is no longer the embedding.
    language.tie_word_embeddings &= !folded;
    let mut value = llava_json(&language, &model.vision.config, model.vision.layers(), &model.config);
    value["image_token_index"] = json!(tokens.image);
    value
}

fn tensors<'a>(model: &'a Imp, rows: usize, folded: Option<&'a Folded<'_>>) -> Vec<NamedTensor<'a>> {
    let (head, norm) = (model.llm.head(), &model.llm.final_norm().name);
    let mut text = model.llm.tensors();
    if let Some(folded) = folded {
        let replaced = [head.name.as_str(), norm].map(|name| [format!("{name}.weight"), format!("{name}.bias")]);
        text.retain(|tensor| !replaced.as_flattened().contains(&tensor.name));
        text.push(NamedTensor::vector(format!("{norm}.weight"), &folded.norm_weight));
        text.push(NamedTensor::vector(format!("{norm}.bias"), &folded.norm_bias));
        let (outputs, inputs) = (head.weight.outputs(), head.weight.inputs());
        text.push(NamedTensor::matrix(&head.name, outputs, inputs, |rows| folded.rows(rows).into()));
        // Older versions of transformers and vLLM have a place for it, and insist.
        text.push(NamedTensor::constant(format!("{}.bias", head.name), vec![outputs], 0.0));
    }
    let text = text.into_iter().map(|tensor| {
        let has_tokens = tensor.name.starts_with("model.embed_tokens.") || tensor.name.starts_with(&head.name);
        let tensor = if has_tokens { tensor.padded(rows) } else { tensor };
        let name = format!("language_model.{}", tensor.name);
        tensor.renamed(name)
    });
    let mut all: Vec<NamedTensor<'a>> = text.collect();
    all.extend(
        model
            .projector
            .tensors()
            .into_iter()
            .zip(
                ["linear_1", "linear_2"]
                    .iter()
                    .flat_map(|layer| ["weight", "bias"].map(|part| format!("multi_modal_projector.{layer}.{part}"))),
            )
            .map(|(tensor, name)| tensor.renamed(name)),
    );
    all.extend(vision_tensors(model));
    all
}

/// The tower with one more layer than is read, of zeros: readers take the hidden state before the last layer's.
fn vision_tensors(model: &Imp) -> Vec<NamedTensor<'_>> {
    let (tower, description) = (&model.vision.config, model.vision.config.encoder.description());
    let prefix = format!("{TOWER_PREFIX}{}", description.prefix);
    let mut all = model.vision.tensors(&prefix);
    let (used, width) = (model.vision.layers(), tower.hidden_size);
    let zeros = tower.layer_shapes().into_iter().map(|(part, shape)| {
        NamedTensor::constant(format!("{prefix}{}.{used}.{part}", description.blocks), shape, 0.0)
    });
    all.extend(zeros);
    for (part, value) in [("weight", 1.0), ("bias", 0.0)] {
        let name = format!("{prefix}{}.{part}", description.last_norm);
        all.push(NamedTensor::constant(name, vec![width], value));
    }
    all
}
