//! What tells one tokenizer from another: the mark that training records and models keep of the tokenizer they were made with.
//! Two files that give the same ids have the same mark, however they are formatted. Independent of files.

use std::path::Path;

use imp_model::config::{ImpConfig, TokenizerMark};

use super::tokenizer::TextTokenizer;
use crate::StageError;

/// Its ids differ if normalisation, the split into words, or the order of merges does.
const PROBE: &str = "The 3 quick foxes, in 2024: don\u{2019}t  jump\n\tover it's \u{e9}t\u{e9} \u{4f60}\u{597d} \u{1f600}! x=-10.5e3; HTTPServer\r\n";

/// The mark of `tokenizer`, which a template may have prepared.
pub(crate) fn identity(tokenizer: &TextTokenizer) -> TokenizerMark {
    let mut hasher = blake3::Hasher::new();
    // Lengths make the end of each part certain.
    let mut add = |text: &str, id: i64| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
        hasher.update(&id.to_le_bytes());
    };
    for (id, token) in tokenizer.vocabulary() {
        add(&token, i64::from(id));
    }
    // A tokenizer without a token for a part of the text fails in its own way, too.
    for id in tokenizer.encode(PROBE).unwrap_or_default() {
        add("", i64::from(id));
    }
    TokenizerMark { blake3: hasher.finalize().to_hex().to_string(), added: tokenizer.added() }
}

/// Checks that the tokenizer beside a model does what that of its training did.
pub(crate) fn check_tokenizer(tokenizer: &TextTokenizer, config: &ImpConfig, folder: &Path) -> Result<(), StageError> {
    let Some(trained) = &config.trained_tokenizer else { return Ok(()) };
    if identity(tokenizer).agrees_with(trained) {
        return Ok(());
    }
    let message = "this is not the tokenizer that the model was trained with: its ids mean other words";
    let help = "put the tokenizer.json of the training back beside the model";
    Err(StageError::input(folder.join("tokenizer.json"), message, help))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;
    use crate::text::template::Template;

    fn mark(file: &Value) -> TokenizerMark {
        let mut tokenizer = TextTokenizer::from_bytes(serde_json::to_string_pretty(file).unwrap().as_bytes()).unwrap();
        Template::Phi2.prepare(&mut tokenizer).unwrap();
        identity(&tokenizer)
    }

    fn file(vocab: &[&str], merges: &Value) -> Value {
        let vocab: serde_json::Map<String, Value> =
            vocab.iter().enumerate().map(|(id, token)| ((*token).to_string(), json!(id))).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        json!({
            "version": "1.0", "pre_tokenizer": level, "decoder": level,
            "added_tokens": [{"id": vocab.len(), "content": "<|endoftext|>", "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true}],
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        })
    }

    #[test]
    fn other_ids_are_told_from_another_format() {
        let (words, merges) = (["T", "h", "e", "Th", "he"], json!(["T h", "h e"]));
        let own = mark(&file(&words, &merges));
        let agrees = |other: &Value| own.agrees_with(&mark(other));
        assert!(agrees(&file(&words, &json!([["T", "h"], ["h", "e"]]))), "newer files write merges as pairs");
        assert!(!agrees(&file(&["T", "e", "h", "Th", "he"], &merges)), "another order");
        assert!(!agrees(&file(&words, &json!(["h e", "T h"]))), "other merges first");
        // `</s>` was added as token 6.
        let with = |id: usize, content: &str| {
            let mut more = file(&words, &merges);
            let mut added = more["added_tokens"][0].clone();
            (added["id"], added["content"]) = (json!(id), json!(content));
            more["added_tokens"].as_array_mut().unwrap().push(added);
            more
        };
        assert!(agrees(&with(6, "</s>")), "a file that has it already");
        assert!(!agrees(&with(6, "<pad>")), "`</s>` is token 7");
    }
}
