//! Converts the tokenizer in a GGUF file to a `tokenizer.json`: byte-level BPE, as `SmolLM2` and Llama 3 use. Source: llama.cpp's
//! `llama-vocab.cpp`.

use serde_json::{Map, Value as Json, json};

use super::{
    reader::{Gguf, Value},
    write::style::{LLAMA3, QWEN2},
};
use crate::error::{ModelError, Result};

/// The ggml token types that are never split: control tokens (3) and user-defined tokens (4).
const SPECIAL: [i128; 2] = [3, 4];

/// How a text is split before merges, and what else llama.cpp knows of a tokenizer by the name of its pre-tokenizer.
struct Style {
    steps: Vec<Json>,
    /// Whether words that the vocabulary has are taken as they are.
    ignores_merges: bool,
    /// Whether a text begins with the first token, unless the file says so.
    adds_bos: bool,
}

impl Style {
    fn of(pre: &str) -> Option<Self> {
        let split = |pattern: &str| {
            let split =
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
            vec![split, byte_level(false)]
        };
        let (steps, is_llama3) = match pre {
            // Each digit is a separate token.
            "smollm" => (vec![json!({"type": "Digits", "individual_digits": true}), byte_level(true)], false),
            "gpt-2" => (vec![byte_level(true)], false),
            "qwen2" => (split(QWEN2), false),
            "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3), true),
            _ => return None,
        };
        Some(Self { steps, ignores_merges: is_llama3, adds_bos: is_llama3 })
    }
}

fn byte_level(splits: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits})
}

/// The post-processor of a `tokenizer.json` that puts a token before each text.
pub fn beginning(id: usize, token: &str) -> Json {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |name: &str| json!({"Sequence": {"id": name, "type_id": u8::from(name == "B")}});
    json!({
        "type": "TemplateProcessing",
        "single": [special, text("A")],
        "pair": [special, text("A"), special, text("B")],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    })
}

/// The pre-tokenizer that the file names, if it does.
fn named(gguf: &Gguf) -> Option<String> {
    gguf.text("tokenizer.ggml.pre").ok().filter(|pre| !["", "default"].contains(&pre.as_str()))
}

/// What is assumed of the tokenizer, if the file does not say it.
pub(super) fn assumed(gguf: &Gguf) -> Option<String> {
    named(gguf).is_none().then(|| "tokenizer.ggml.pre (not given: how texts are split is assumed)".into())
}

pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Json> {
    let (model, tokens) = (gguf.text("tokenizer.ggml.model")?, gguf.tokens()?);
    let pre = match named(gguf) {
        Some(pre) => pre,
        // Files of before May 2024 don't say it.
        None if tokens.iter().any(|token| token == "<|begin_of_text|>") => "llama-bpe".into(),
        None => "gpt-2".into(),
    };
    let Some(Style { steps, ignores_merges, adds_bos }) = Style::of(&pre).filter(|_| model == "gpt2") else {
        let message = format!(
            "tokenizer `{model}` with pre-tokenizer `{pre}` is not supported (supported: gpt2 with smollm, gpt-2, qwen2 or \
             llama-bpe)"
        );
        return Err(ModelError::file(&gguf.path, message));
    };
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
    let adds_bos = match gguf.value("tokenizer.ggml.add_bos_token") {
        Some(Value::Flag(flag)) => *flag,
        _ => adds_bos,
    };
    let bos = if adds_bos { gguf.optional("tokenizer.ggml.bos_token_id", Gguf::number)? } else { None };
    let bos = bos.map(|id| match tokens.get(id) {
        Some(token) => Ok(beginning(id, token)),
        None => Err(ModelError::file(&gguf.path, format!("`tokenizer.ggml.bos_token_id` = {id} is no token"))),
    });
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": steps },
        "post_processor": bos.transpose()?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": ignores_merges,
            "vocab": vocabulary, "merges": merges,
        },
    }))
}
