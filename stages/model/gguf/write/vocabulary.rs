//! The tokenizer in a GGUF file, from a `tokenizer.json`. Source: llama.cpp's `convert_hf_to_gguf.py` for keys and types of tokens.

use std::collections::HashMap;

use serde_json::Value;

use super::{container::Keys, style::Style};
use crate::family::Family;

/// How a model's texts become tokens, and what programs have to know of its conversations.
pub struct Speech<'a> {
    /// The content of the `tokenizer.json`, with all tokens that were added.
    pub tokenizer: &'a Value,
    /// The conversation template in Jinja.
    pub chat_template: &'a str,
    /// Whether every text begins with the token `bos`.
    pub add_bos: bool,
    /// The token that begins a text.
    pub bos: Option<u32>,
    /// The token that ends an answer.
    pub eos: u32,
    /// The token that fills shorter sequences of a batch.
    pub pad: u32,
}

/// llama.cpp's types of tokens.
#[derive(Clone, Copy)]
enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

/// The text of the rows that have no token.
fn unused(row: usize) -> String {
    format!("[PAD{row}]")
}

/// Adds the tokenizer of a model with `rows` rows in its embedding.
///
/// # Errors
/// In words, if llama.cpp has no tokenizer that does the same.
pub(super) fn describe(keys: &mut Keys, speech: &Speech<'_>, family: Family, rows: usize) -> Result<(), String> {
    let file = speech.tokenizer;
    let style = Style::of(file, family)?;
    let vocab = file["model"]["vocab"].as_object().ok_or("the tokenizer has no vocabulary")?;
    let mut tokens: Vec<(String, Kind)> = (0..rows).map(|row| (unused(row), Kind::Unused)).collect();
    let mut set = |id: Option<u64>, token: &str, kind: Kind| match id.and_then(|id| tokens.get_mut(id as usize)) {
        // Added tokens repeat those of the vocabulary.
        Some((there, was)) if !matches!(was, Kind::Unused) && there != token => {
            Err(format!("the tokens `{there}` and `{token}` have the same id"))
        }
        Some(place) => {
            *place = (token.to_string(), kind);
            Ok(())
        }
        None => Err(format!("the id of the token `{token}` is beyond the {rows} rows of the embedding")),
    };
    for (token, id) in vocab {
        let is_byte = style.model == "llama" && token.len() == 6 && token.starts_with("<0x") && token.ends_with('>');
        set(id.as_u64(), token, if is_byte { Kind::Byte } else { Kind::Normal })?;
    }
    for added in file["added_tokens"].as_array().into_iter().flatten() {
        let token = added["content"].as_str().ok_or("an added token of the tokenizer has no content")?;
        let kind = match added["special"] {
            _ if style.model == "llama" && token == "<unk>" => Kind::Unknown,
            Value::Bool(true) => Kind::Control,
            _ => Kind::UserDefined,
        };
        set(added["id"].as_u64(), token, kind)?;
    }
    let merges = merges(file)?;
    keys.text("tokenizer.ggml.model", style.model);
    keys.text("tokenizer.ggml.pre", style.pre);
    keys.texts("tokenizer.ggml.tokens", tokens.iter().map(|(token, _)| token.as_str()));
    keys.numbers("tokenizer.ggml.token_type", tokens.iter().map(|(_, kind)| *kind as i32));
    if style.model == "llama" {
        let (scores, last) = (scores(&merges), -(merges.len() as f32));
        let score = |(token, kind): &(String, Kind)| match kind {
            Kind::Normal => scores.get(token).copied().unwrap_or(last),
            _ => 0.0,
        };
        keys.floats("tokenizer.ggml.scores", tokens.iter().map(score));
    } else {
        let merges: Vec<String> = merges.iter().map(|(left, right)| format!("{left} {right}")).collect();
        keys.texts("tokenizer.ggml.merges", merges.iter().map(String::as_str));
    }
    for (name, id) in [("bos", speech.bos), ("eos", Some(speech.eos)), ("padding", Some(speech.pad))] {
        let is_token = |id: &u32| tokens.get(*id as usize).is_some_and(|(_, kind)| !matches!(kind, Kind::Unused));
        if let Some(id) = id.filter(|id| !is_token(id)) {
            return Err(format!("the id {id} of the {name} token is no token of the tokenizer"));
        }
    }
    if let Some(bos) = speech.bos {
        keys.number("tokenizer.ggml.bos_token_id", bos as usize);
    }
    keys.number("tokenizer.ggml.eos_token_id", speech.eos as usize);
    keys.number("tokenizer.ggml.padding_token_id", speech.pad as usize);
    keys.flag("tokenizer.ggml.add_bos_token", speech.add_bos);
    keys.flag("tokenizer.ggml.add_eos_token", false);
    keys.text("tokenizer.chat_template", speech.chat_template);
    Ok(())
}

/// Whether white space after special tokens belongs to them: llama.cpp does so for models whose name has `phi-3` in it.
pub(super) fn strips_after_special(tokenizer: &Value) -> bool {
    let mut added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    added.any(|token| token["special"] == true && token["rstrip"] == true)
}

/// The pairs of tokens that become one, in their order. Files have them as texts or as pairs.
fn merges(file: &Value) -> Result<Vec<(&str, &str)>, String> {
    let merges = file["model"]["merges"].as_array().into_iter().flatten();
    merges
        .map(|merge| pair(merge).ok_or_else(|| format!("the tokenizer's merge {merge} is no pair of tokens")))
        .collect()
}

/// In a GGUF file a space stands between the two.
fn pair(merge: &Value) -> Option<(&str, &str)> {
    let (left, right) = match merge {
        Value::String(text) => text.split_once(' '),
        pair => pair[0].as_str().zip(pair[1].as_str()),
    }?;
    (![left, right].iter().any(|side| side.is_empty() || side.contains(' '))).then_some((left, right))
}

/// `SentencePiece` merges the pair with the highest score first: minus the rank of the merge.
fn scores(merges: &[(&str, &str)]) -> HashMap<String, f32> {
    let mut scores = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        scores.entry(format!("{left}{right}")).or_insert(-(rank as f32));
    }
    scores
}
