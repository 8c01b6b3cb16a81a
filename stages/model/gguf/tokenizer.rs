//! Converts the tokenizer in a GGUF file to a `tokenizer.json`: GPT-2's byte-level BPE, which `SmolLM2` uses.

use serde_json::{Map, Value as Json, json};

use super::reader::{Gguf, Value};
use crate::error::{ModelError, Result};

/// The ggml token types that are never split: control tokens (3) and user-defined tokens (4).
const SPECIAL: [i128; 2] = [3, 4];

pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Json> {
    let (model, pre) = (gguf.text("tokenizer.ggml.model")?, gguf.text("tokenizer.ggml.pre").unwrap_or_default());
    let digits = match (model.as_str(), pre.as_str()) {
        // Each digit is a separate token.
        ("gpt2", "smollm") => true,
        ("gpt2", "gpt-2" | "default" | "") => false,
        _ => {
            let message = format!(
                "tokenizer `{model}` with pre-tokenizer `{pre}` is not supported (supported: gpt2 with smollm or gpt-2)"
            );
            return Err(ModelError::file(&gguf.path, message));
        }
    };
    let tokens = gguf.tokens()?;
    let kinds = gguf.list("tokenizer.ggml.token_type", Value::whole)?;
    let merges = gguf.list("tokenizer.ggml.merges", Value::text)?;
    let vocabulary: Map<String, Json> = tokens.iter().cloned().zip((0..tokens.len()).map(|id| json!(id))).collect();
    let added: Vec<Json> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| SPECIAL.contains(kind))
        .map(|(id, (content, _))| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let mut steps = vec![byte_level.clone()];
    if digits {
        steps.insert(0, json!({ "type": "Digits", "individual_digits": true }));
    }
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": merges,
        },
    }))
}
