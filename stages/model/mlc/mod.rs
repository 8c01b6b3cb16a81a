//! MLC's container of a whole Imp in `q4f16_1`, as mlc-imp deploys Imp-v1-3B with images of 196 pixels: written, and read back.
//! `docs/deploy.md` says what was compared. Independent of tokenizers and templates.

mod container;
mod load;
mod names;
mod size;

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    config::{Encoder, Family, ImpConfig, LanguageConfig, ProjectorType, VisionConfig, merged_json},
    encoding::q4f16,
    error::{ModelError, Result},
    imp::Imp,
    layers::Importance,
    save::all_tensors,
    tensor::Activation,
    weights::{Encoded, NamedTensor, write_json},
};
use container::Plan;
pub(crate) use load::{is_here, open};
use names::{Group, group, to_mlc};
pub use size::size;

/// The table of the tower's positions, an embedding in mlc-imp.
const POSITIONS: &str = "embeddings.position_embedding.weight";

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Number of parameters before they were encoded.
    pub weights: u64,
    /// Size of the vision tower in bytes.
    pub vision: u64,
    /// Size of the projector.
    pub projector: u64,
    /// Size of the language model without its output layer.
    pub language: u64,
    /// Size of the output layer, with Phi's norm before it.
    pub head: u64,
}

impl Written {
    /// Size of everything.
    pub fn bytes(&self) -> u64 {
        self.vision + self.projector + self.language + self.head
    }

    fn add(&mut self, name: &str, bytes: usize) {
        let size = match group(name) {
            Group::Vision => &mut self.vision,
            Group::Projector => &mut self.projector,
            Group::Language => &mut self.language,
            Group::Head => &mut self.head,
        };
        *size += bytes as u64;
    }
}

/// Writes shards, their lists and `config.json`, which imp-flow reads them with, to `folder`. Keeps best what `importance` says that
/// matters.
///
/// # Errors
/// If MLC's models can't be this model, a value is too large for an f16 scale, or `folder` can't be written.
pub fn write(model: &Imp, importance: &Importance, folder: &Path) -> Result<Written> {
    check(model).map_err(|message| ModelError::file(&folder.join(container::LISTS[0]), message))?;
    let tensors = importance.noted(all_tensors(model));
    let weights = tensors.iter().map(|tensor| tensor.count() as u64).sum();
    let extra = |tensor| ModelError::Extra { file: folder.join(container::LISTS[0]), tensor };
    let plan = Plan::new(folder, encoded(model.llm.config.family, tensors).map_err(extra)?);
    let mut written = Written { weights, ..Written::default() };
    plan.parts().for_each(|part| written.add(&part.name, part.bytes));
    plan.write(folder, weights)?;
    let mut config = merged_json(&model.llm.merged_config(), &model.vision.config, &model.config);
    config["torch_dtype"] = json!("float16");
    config["quantization_config"] = q4f16::described();
    write_json(&folder.join("config.json"), &config)?;
    Ok(written)
}

/// The tensors under their names there, those of one matrix stacked.
///
/// # Errors
/// The name of a tensor that has none there.
fn encoded(family: Family, tensors: Vec<NamedTensor<'_>>) -> std::result::Result<Vec<Encoded<'_>>, String> {
    let mut stacks: Vec<(String, Vec<NamedTensor<'_>>)> = Vec::new();
    for tensor in tensors {
        let theirs =
            tensor.name.rsplit_once('.').and_then(|(module, part)| Some(format!("{}.{part}", to_mlc(family, module)?)));
        let theirs = theirs.ok_or_else(|| tensor.name.clone())?;
        let tensor = if theirs.ends_with(POSITIONS) { tensor.into_matrix() } else { tensor };
        // Layers of a block that share a matrix are near each other.
        match stacks.iter_mut().rev().take(16).find(|(name, _)| *name == theirs) {
            Some((_, stack)) => stack.push(tensor),
            None => stacks.push((theirs, vec![tensor])),
        }
    }
    Ok(stacks.into_iter().map(|(name, stack)| Encoded::q4f16(NamedTensor::stacked(name, stack))).collect())
}

/// Whether mlc-imp runs the model: it has one vision tower.
pub fn is_of_mlc_imp(model: &Imp) -> bool {
    let usual = VisionConfig { image_size: 196, ..VisionConfig::so400m_patch14_384() };
    let tower = &model.vision.config;
    model.llm.config.family == Family::Phi
        && model.vision.layers() == 26
        && *tower == VisionConfig { num_hidden_layers: tower.num_hidden_layers, ..usual }
}

/// Why MLC's models can't be such a model, if so.
pub fn unfit(joined: &ImpConfig, language: &LanguageConfig, tower: &VisionConfig) -> Option<String> {
    if joined.mm_projector_type != ProjectorType::Mlp(2) {
        return Some(format!(
            "MLC's projector has two layers (mlp2x_gelu), and the model's is {}",
            joined.mm_projector_type
        ));
    }
    if tower.encoder != Encoder::Siglip {
        let name = tower.encoder.description().whole.0;
        return Some(format!("mlc-imp's vision tower is a SigLIP, and the model's is a {name}"));
    }
    if language.head_dim * language.num_attention_heads != language.hidden_size {
        return Some(format!(
            "MLC's models have heads of the width {}, and the model's have {}",
            language.hidden_size / language.num_attention_heads,
            language.head_dim
        ));
    }
    if tower.hidden_act != Activation::GeluTanh
        || (language.family == Family::Phi && language.hidden_act != Activation::GeluTanh)
    {
        return Some(
            "MLC's Phi and vision tower have the activation gelu_pytorch_tanh, and the model has another".into(),
        );
    }
    if tower.images != Encoder::Siglip.description().images {
        return Some(
            "mlc-imp prepares images as SigLIP's first checkpoints do, and the model's encoder has another way".into(),
        );
    }
    if let Some(scaling) = &language.rope_scaling {
        return Some(format!("`rope_scaling` of type `{}` is not written for MLC", scaling.name()));
    }
    if language.rope_theta.fract() != 0.0 {
        return Some(format!(
            "MLC's base of rotary frequencies is a whole number, and the model's is {}",
            language.rope_theta
        ));
    }
    None
}

/// Why MLC's models can't be the model, if so.
fn check(model: &Imp) -> std::result::Result<(), String> {
    let language = &model.llm.config;
    if let Some(message) = unfit(&model.config, language, &model.vision.config) {
        return Err(message);
    }
    if language.family == Family::Phi && model.llm.merged_config().tie_word_embeddings {
        return Err("MLC's Phi has an output layer of its own, and the model's is its embedding".into());
    }
    Ok(())
}

/// `model_type` and `model_config` of `mlc-chat-config.json`. `image` is the id of the token that stands for image features.
pub fn model_config(model: &Imp, image: u32) -> (&'static str, Value) {
    let (language, context) = (&model.llm.config, model.config.tokenizer_model_max_length);
    let text = match language.family {
        Family::Phi => phi_config(language, context),
        Family::Qwen2 | Family::Llama | Family::Phi3 => common_config(language, context),
    };
    if language.family == Family::Phi {
        let mut config = text;
        config["image_token_index"] = json!(image);
        config["image_token"] = json!("<image>");
        config["dtype"] = json!("float16");
        return ("imp", config);
    }
    let mut vision = model.vision.config.network_json();
    vision["num_hidden_layers"] = json!(model.vision.layers());
    let config = json!({
        "image_token_index": image,
        "text_config": text,
        "vision_config": vision,
        "vocab_size": language.vocab_size,
        "context_window_size": context,
        "prefill_chunk_size": context,
        "tensor_parallel_shards": 1,
    });
    ("llava", config)
}

/// The keys of Microsoft's Phi code, which mlc-imp's `PhiConfig` has.
fn phi_config(language: &LanguageConfig, context: usize) -> Value {
    json!({
        "model_type": "phi-msft",
        "vocab_size": language.vocab_size,
        "n_positions": context,
        "n_embd": language.hidden_size,
        "n_layer": language.num_hidden_layers,
        "n_inner": language.intermediate_size,
        "n_head": language.num_attention_heads,
        "n_head_kv": language.num_key_value_heads,
        "head_dim": language.head_dim,
        "rotary_dim": language.rotary_dims,
        "position_embedding_base": language.rope_theta as u64,
        "layer_norm_epsilon": language.norm_eps,
        "context_window_size": context,
        "prefill_chunk_size": context,
        "tensor_parallel_shards": 1,
    })
}

fn common_config(language: &LanguageConfig, context: usize) -> Value {
    json!({
        "model_type": language.family.model_type(),
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_hidden_layers,
        "num_attention_heads": language.num_attention_heads,
        "num_key_value_heads": language.num_key_value_heads,
        "head_dim": language.head_dim,
        "hidden_act": language.hidden_act,
        "rms_norm_eps": language.norm_eps,
        "rope_theta": language.rope_theta as u64,
        "tie_word_embeddings": language.tie_word_embeddings,
        "context_window_size": context,
        "prefill_chunk_size": context,
        "tensor_parallel_shards": 1,
    })
}

/// Name of the scheme, `quantization` of `mlc-chat-config.json`.
pub const SCHEME: &str = q4f16::NAME;
