//! How much longer a `tokenizer.json` can make a text on its way to tokens, and tokens on their way back. Its rules are data from
//! outside: a few that replace one letter by ten multiply, and the memory is taken before anything can be counted. Independent of
//! what the tokens are.

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

/// Longer prefixes are counted for every letter: one is put before each piece of a text between added tokens.
const SHORT_PREFIX: u64 = 16;
/// Bytes that a token of a template counts for.
const TEMPLATE_TOKEN: u64 = 32;

/// The steps, in their order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Growth(Vec<Step>);

impl Growth {
    /// Reads the content of a `tokenizer.json`: what it does to texts, and what to tokens that become text.
    ///
    /// # Errors
    /// A message, if it is not JSON.
    pub(super) fn of(tokenizer: &[u8]) -> Result<(Self, Self), String> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            normalizer: Value,
            #[serde(default)]
            pre_tokenizer: Value,
            #[serde(default)]
            post_processor: Value,
            #[serde(default)]
            decoder: Value,
        }
        let file: File = serde_json::from_slice(tokenizer).map_err(|error| error.to_string())?;
        let (mut encoding, mut decoding) = (Self::default(), Self::default());
        for part in [&file.normalizer, &file.pre_tokenizer, &file.post_processor] {
            encoding.add(part);
        }
        decoding.add(&file.decoder);
        Ok((encoding, decoding))
    }

    fn add(&mut self, part: &Value) {
        let text = |value: &Value| value.as_str().map_or(0, |text| text.len() as u64);
        match part["type"].as_str() {
            Some("Sequence") => {
                let steps =
                    ["normalizers", "pretokenizers", "processors", "decoders"].map(|name| part[name].as_array());
                steps.into_iter().flatten().flatten().for_each(|step| self.add(step));
            }
            Some("Prepend") => self.0.push(match text(&part["prepend"]) {
                short @ ..=SHORT_PREFIX => Step::Prepend(short),
                long => Step::Multiply(long.saturating_add(1)),
            }),
            // A byte that is no ASCII becomes a letter of two.
            Some("ByteLevel") => self.0.push(Step::Multiply(2)),
            Some("TemplateProcessing") => {
                let template = part["single"].as_array().map_or(&[][..], Vec::as_slice);
                let whole = template.iter().filter(|piece| piece.get("Sequence").is_some()).count() as u64;
                self.0.push(Step::Multiply(whole.max(1)));
                self.0.push(Step::Prepend((template.len() as u64 - whole).saturating_mul(TEMPLATE_TOKEN)));
            }
            Some("Replace") => {
                let content = text(&part["content"]);
                let replaced = text(&part["pattern"]["String"]);
                self.0.push(Step::Multiply(match replaced {
                    // A regular expression may match every letter, and the gap before it.
                    0 => content.saturating_add(1),
                    bytes => content.div_ceil(bytes).max(1),
                }));
            }
            Some("Precompiled") => self.0.push(Step::Multiply(longest(&part["precompiled_charsmap"]))),
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
        Growth::of(json!({ "normalizer": normalizer }).to_string().as_bytes()).unwrap().0
    }

    #[test]
    fn every_part_of_the_file_is_measured() {
        let letters = json!({"type": "ByteLevel"});
        assert_eq!(growth(&json!({"type": "Sequence", "normalizers": vec![&letters; 24]})).of_text(1), 1 << 24);
        let ten = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let file = json!({
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [&letters, &letters]},
            "post_processor": {"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ]},
            "decoder": {"type": "Sequence", "decoders": vec![ten; 3]},
        });
        let (encoding, decoding) = Growth::of(file.to_string().as_bytes()).unwrap();
        assert_eq!((encoding.of_text(10), decoding.of_text(10)), (10 * 4 * 2 + 32, 10_000));
        let long = growth(&json!({"type": "Prepend", "prepend": "x".repeat(100)}));
        assert_eq!(long.of_text(10), 1010, "it may stand before every letter");
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
