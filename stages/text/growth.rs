//! How much longer a `tokenizer.json` can make a text before it splits it into tokens. Its rules are data from outside: a few
//! that replace one letter by ten multiply, and the memory is taken before anything can be counted. Independent of tokens.

use serde::Deserialize;
use serde_json::Value;

/// A step that makes a text longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Puts this many bytes before the text.
    Prepend(u64),
    /// Replaces each byte by at most this many.
    Multiply(u64),
}

/// The steps, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Growth(Vec<Step>);

impl Growth {
    /// Reads the content of a `tokenizer.json`.
    ///
    /// # Errors
    /// A message, if it is not JSON.
    pub(super) fn of(tokenizer: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            normalizer: Value,
        }
        let file: File = serde_json::from_slice(tokenizer).map_err(|error| error.to_string())?;
        let mut growth = Self::default();
        growth.add(&file.normalizer);
        Ok(growth)
    }

    fn add(&mut self, normalizer: &Value) {
        let text = |value: &Value| value.as_str().map_or(0, |text| text.len() as u64);
        match normalizer["type"].as_str() {
            Some("Sequence") => {
                normalizer["normalizers"].as_array().into_iter().flatten().for_each(|step| self.add(step));
            }
            Some("Prepend") => self.0.push(Step::Prepend(text(&normalizer["prepend"]))),
            Some("Replace") => {
                let content = text(&normalizer["content"]);
                let replaced = text(&normalizer["pattern"]["String"]);
                self.0.push(Step::Multiply(match replaced {
                    // A regular expression may match every letter, and the gap before it.
                    0 => content.saturating_add(1),
                    bytes => content.div_ceil(bytes).max(1),
                }));
            }
            Some("Precompiled") => self.0.push(Step::Multiply(longest(&normalizer["precompiled_charsmap"]))),
            // The others follow Unicode, whose longest replacement has 33 bytes for 3.
            _ => {}
        }
    }

    /// The most bytes that a text of `bytes` can have after all steps.
    pub(super) fn of_text(&self, bytes: u64) -> u64 {
        self.0.iter().fold(bytes, |bytes, step| match step {
            Step::Prepend(more) => bytes.saturating_add(*more),
            Step::Multiply(factor) => bytes.saturating_mul(*factor),
        })
    }
}

/// The length of the longest replacement in the table of characters of `SentencePiece`: the size of a search tree in four bytes, the
/// tree, and the replacements, each with a zero byte at its end.
fn longest(table: &Value) -> u64 {
    use base64::Engine;
    let table = table.as_str().and_then(|text| base64::engine::general_purpose::STANDARD.decode(text).ok());
    let replacements = table.as_deref().and_then(|table| {
        let (size, rest) = table.split_first_chunk::<4>()?;
        rest.get(u32::from_le_bytes(*size) as usize..)
    });
    let longest = replacements.into_iter().flat_map(|all| all.split(|byte| *byte == 0)).map(<[u8]>::len).max();
    // The shortest letter that is replaced has one byte.
    longest.unwrap_or_default().max(1) as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn growth(normalizer: &Value) -> Growth {
        Growth::of(json!({ "normalizer": normalizer }).to_string().as_bytes()).unwrap()
    }

    #[test]
    fn steps_multiply() {
        let ten = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let steps = growth(&json!({"type": "Sequence", "normalizers": vec![ten; 8]}));
        assert_eq!(steps.of_text(3), 300_000_000);
        let any = growth(&json!({"type": "Replace", "pattern": {"Regex": ".?"}, "content": "ab"}));
        assert_eq!(any.of_text(10), 30);
    }

    #[test]
    fn published_tokenizers_grow_little() {
        // Llama's.
        let llama = growth(&json!({"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "\u{2581}"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"},
        ]}));
        assert_eq!(llama.of_text(100), 309);
        assert_eq!(growth(&Value::Null).of_text(100), 100);
        assert_eq!(growth(&json!({"type": "NFC"})).of_text(100), 100);
    }

    #[test]
    fn a_table_of_characters_is_measured() {
        use base64::Engine;
        let table = [&2_u32.to_le_bytes()[..], b"xx", b"short\0", &[b'l'; 40], b"\0"].concat();
        let text = base64::engine::general_purpose::STANDARD.encode(table);
        let steps = growth(&json!({"type": "Precompiled", "precompiled_charsmap": text}));
        assert_eq!(steps.of_text(2), 80);
        assert_eq!(growth(&json!({"type": "Precompiled", "precompiled_charsmap": "?"})).of_text(2), 2);
    }
}
