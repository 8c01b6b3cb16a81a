//! The settings of a Llama in a GGUF file that would change the network if they were read: refused by name, since ignoring them
//! would silently give a worse model. Independent of tensors.

use super::reader::{Gguf, Value};
use crate::error::{ModelError, Result};

/// Keys under `llama.` that are read, or say what the tensors bear out.
const KNOWN: [&str; 17] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];
/// Keys with the one value that leaves the network as it is.
const NEUTRAL: [(&str, f64); 16] = [
    ("attention.causal", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("rope.scale_linear", 1.0),
    ("rope.scaling.attn_factor", 1.0),
    ("rope.scaling.factor", 1.0),
    ("use_parallel_residual", 0.0),
];

/// Rejects what is not supported: some scaled and all partial rotary position embeddings, heads of other widths, experts.
pub(super) fn check(gguf: &Gguf, head_dim: usize) -> Result<()> {
    let scaling = gguf.optional("llama.rope.scaling.type", Gguf::text)?;
    if let Some(kind) = scaling.as_ref().filter(|kind| !["none", "linear"].contains(&kind.as_str())) {
        return Err(ModelError::file(&gguf.path, format!("`llama.rope.scaling.type` = `{kind}` is not supported")));
    }
    for key in ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"] {
        if let Some(width) = gguf.optional(key, Gguf::number)?.filter(|width| *width != head_dim) {
            let message = format!("`{key}` = {width} is not supported: it must be the width of a head, {head_dim}");
            return Err(ModelError::file(&gguf.path, message));
        }
    }
    for (key, neutral) in NEUTRAL {
        // Without scaling its factor has no effect, if the file says so; of a linear one it is read.
        if scaling.is_some() && key == "rope.scaling.factor" {
            continue;
        }
        let key = format!("llama.{key}");
        if let Some(value) = gguf.value(&key).filter(|value| number(value) != Some(neutral)) {
            return Err(ModelError::file(&gguf.path, format!("`{key}` = {} is not supported", shown(value))));
        }
    }
    Ok(())
}

/// The keys of the architecture that are neither read nor known to be harmless.
pub(super) fn unknown(gguf: &Gguf) -> Vec<String> {
    let harmless = |key: &str| KNOWN.contains(&key) || NEUTRAL.iter().any(|(name, _)| *name == key);
    let keys = gguf.keys().filter_map(|key| key.strip_prefix("llama."));
    keys.filter(|key| !harmless(key)).map(|key| format!("llama.{key}")).collect()
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => Some(*number),
        Value::Whole(number) => Some(*number as f64),
        Value::Flag(flag) => Some(f64::from(u8::from(*flag))),
        Value::Text(_) | Value::List(_) => None,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Text(text) => text.clone(),
        Value::List(_) => "a list".into(),
        Value::Number(_) | Value::Whole(_) => number(value).unwrap_or_default().to_string(),
    }
}
