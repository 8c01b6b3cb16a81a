//! Which of llama.cpp's tokenizers does what a `tokenizer.json` does: one that is nearly the same would give other ids without a
//! word, so only what is known exactly is accepted. Source: llama.cpp's `llama-vocab.cpp`.

use serde_json::{Value, json};

use crate::family::Family;

/// How a text is split before merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Style {
    /// The algorithm: `gpt2` or `llama`.
    pub(super) model: &'static str,
    /// The pre-tokenizer.
    pub(super) pre: &'static str,
}

/// Qwen's pattern.
pub(in crate::gguf) const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Llama 3's, which differs in how many digits stay together.
pub(in crate::gguf) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// `SentencePiece`'s mark of a space.
const SPACE: &str = "\u{2581}";

impl Style {
    /// The style of the tokenizer in `file`.
    ///
    /// # Errors
    /// In words, if llama.cpp has no tokenizer that is known to do the same.
    pub(super) fn of(file: &Value, family: Family) -> Result<Self, String> {
        if file["model"]["type"].as_str() != Some("BPE") {
            return Err(format!("a tokenizer of the type {} has no counterpart in GGUF files", file["model"]["type"]));
        }
        if file["model"]["dropout"].as_f64().is_some_and(|rate| rate != 0.0) {
            return Err("its merges are dropped at random".into());
        }
        for token in file["added_tokens"].as_array().into_iter().flatten() {
            if token["lstrip"] == true || token["single_word"] == true {
                return Err(format!(
                    "llama.cpp has no token like {}, which takes part of the text around it",
                    token["content"]
                ));
            }
        }
        if file["model"]["byte_fallback"] == true { sentence_piece(file) } else { byte_level(file, family) }
    }
}

/// `SentencePiece`'s, as transformers converts it: a mark before the text and for every space.
fn sentence_piece(file: &Value) -> Result<Style, String> {
    let marks = json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": SPACE},
        {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    ]});
    if file["normalizer"] != marks || !file["pre_tokenizer"].is_null() {
        return Err(
            "its normalizer and pre-tokenizer are not those of a SentencePiece tokenizer that llama.cpp has".into()
        );
    }
    Ok(Style { model: "llama", pre: "default" })
}

fn byte_level(file: &Value, family: Family) -> Result<Style, String> {
    let mut steps = Vec::new();
    flatten(&file["pre_tokenizer"], &mut steps);
    let pre = match steps.as_slice() {
        // The same pattern under two names.
        [bytes] if is_bytes(bytes, true) => {
            if family == Family::Phi {
                "phi-2"
            } else {
                "gpt-2"
            }
        }
        [digits, bytes] if digits["individual_digits"] == true && is_bytes(bytes, true) => "smollm",
        [split, bytes] if is_split(split, LLAMA3) && is_bytes(bytes, false) => "llama-bpe",
        [split, bytes] if is_split(split, QWEN2) && is_bytes(bytes, false) => "qwen2",
        _ => {
            let kinds: Vec<&str> = steps.iter().filter_map(|step| step["type"].as_str()).collect();
            let kinds = kinds.join(", ");
            return Err(format!("no pre-tokenizer of llama.cpp is known to do what this tokenizer does ({kinds})"));
        }
    };
    // Qwen's, which llama.cpp leaves out, too: it changes only texts that are not in Unicode's usual form.
    let composes = file["normalizer"]["type"] == "NFC" && pre == "qwen2";
    if !(file["normalizer"].is_null() || composes) {
        return Err(format!("llama.cpp has no normalizer `{}`", file["normalizer"]["type"].as_str().unwrap_or("?")));
    }
    // llama.cpp takes words that the vocabulary has as they are with this pre-tokenizer, and with no other.
    if (file["model"]["ignore_merges"] == true) != (pre == "llama-bpe") {
        let has = if pre == "llama-bpe" { "has" } else { "does not know" };
        return Err(format!("llama.cpp {has} `ignore_merges` with this pre-tokenizer (`{pre}`), unlike the tokenizer"));
    }
    Ok(Style { model: "gpt2", pre })
}

fn is_bytes(step: &Value, splits: bool) -> bool {
    step["type"] == "ByteLevel" && step["add_prefix_space"] != true && (step["use_regex"] != false) == splits
}

fn is_split(step: &Value, pattern: &str) -> bool {
    step["type"] == "Split"
        && step["pattern"]["Regex"] == pattern
        && step["behavior"] == "Isolated"
        && step["invert"] != true
}

fn flatten<'a>(step: &'a Value, steps: &mut Vec<&'a Value>) {
    match step["pretokenizers"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(step),
    }
}
