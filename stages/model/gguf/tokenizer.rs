//! The tokenizer that a GGUF file carries, as a `tokenizer.json`: byte-level BPE (GPT-2's), as `SmolLM2` has it.

use serde_json::{Map, Value as Json, json};

use super::reader::{Gguf, Value};
use crate::error::{ModelError, Result};

/// ggml's types of tokens that are recognised as a whole: control tokens, and those that users defined.
const SPECIAL: [i128; 2] = [3, 4];

pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Json> {
    let (model, pre) = (gguf.text("tokenizer.ggml.model")?, gguf.text("tokenizer.ggml.pre").unwrap_or_default());
    let digits = match (model.as_str(), pre.as_str()) {
        // Each digit is a token of its own.
        ("gpt2", "smollm") => true,
        ("gpt2", "gpt-2" | "default" | "") => false,
        _ => {
            let message = format!("a tokenizer of the kind `{model}` with `{pre}`: gpt2 with smollm or gpt-2 is read");
            return Err(ModelError::file(&gguf.path, message));
        }
    };
    let tokens = gguf.tokens()?;
    let whole = |value: &Value| if let Value::Whole(number) = value { Some(*number) } else { None };
    let text = |value: &Value| if let Value::Text(text) = value { Some(text.clone()) } else { None };
    let kinds = gguf.list("tokenizer.ggml.token_type", whole)?;
    let merges = gguf.list("tokenizer.ggml.merges", text)?;
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
