//! What tells one tokenizer from another: the digest that training records and models keep of the tokenizer they were made with.
//! Two files that give the same ids have the same digest, however they are formatted. Independent of files.

use std::path::Path;

use imp_model::config::ImpConfig;

use super::{template::Template, tokenizer::TextTokenizer};
use crate::StageError;

/// Its ids differ if normalisation, the split into words, or the order of merges does.
const PROBE: &str = "The 3 quick foxes, in 2024: don\u{2019}t  jump\n\tover it's \u{e9}t\u{e9} \u{4f60}\u{597d} \u{1f600}! x=-10.5e3; HTTPServer\r\n";

/// The digest of `tokenizer`, which `template` has prepared: its vocabulary, the ids of a text, and those of the template's own
/// tokens. Other added tokens do not count, since programs add some when they save a tokenizer.
pub(crate) fn identity(tokenizer: &TextTokenizer, template: Template) -> String {
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
    for token in template.tokens() {
        add(token, tokenizer.id(token).map_or(-1, i64::from));
    }
    hasher.finalize().to_hex().to_string()
}

/// Checks that the tokenizer beside a model does what that of its training did.
pub(crate) fn check_tokenizer(
    tokenizer: &TextTokenizer,
    template: Template,
    config: &ImpConfig,
    folder: &Path,
) -> Result<(), StageError> {
    let Some(known) = &config.tokenizer_blake3 else { return Ok(()) };
    let trained = config.conversation_template.as_deref().and_then(Template::by_name);
    // The digest covers the tokens of the template of training.
    if trained.is_some_and(|trained| trained != template) || identity(tokenizer, template) == *known {
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

    fn digest(file: &Value) -> String {
        let mut tokenizer = TextTokenizer::from_bytes(serde_json::to_string_pretty(file).unwrap().as_bytes()).unwrap();
        Template::Phi2.prepare(&mut tokenizer).unwrap();
        identity(&tokenizer, Template::Phi2)
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
    fn other_ids_give_another_digest_and_another_format_does_not() {
        let (words, merges) = (["T", "h", "e", "Th", "he"], json!(["T h", "h e"]));
        let own = digest(&file(&words, &merges));
        assert_eq!(digest(&file(&words, &json!([["T", "h"], ["h", "e"]]))), own, "newer files write merges as pairs");
        let mut more = file(&words, &merges);
        let mut added = more["added_tokens"][0].clone();
        (added["id"], added["content"]) = (json!(7), json!("<pad>"));
        more["added_tokens"].as_array_mut().unwrap().push(added);
        assert_ne!(digest(&more), own, "`</s>` has moved");
        assert_ne!(digest(&file(&["T", "e", "h", "Th", "he"], &merges)), own, "another order");
        assert_ne!(digest(&file(&words, &json!(["h e", "T h"]))), own, "other merges first");
        let mut split = file(&words, &merges);
        split["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true},
            split["pre_tokenizer"]]});
        assert_eq!(digest(&split), own, "this vocabulary has no digits");
    }
}
