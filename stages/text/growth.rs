//! How much longer a `tokenizer.json` can make a text on its way to tokens, and tokens on their way back. Its rules are data from
//! outside: a few that replace one letter by ten multiply, and the memory is taken before anything can be counted. Independent of
//! what the tokens are.

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

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
    /// What a tokenizer does to texts, and what to tokens that become text. Asked of what the library has read, not of the file,
    /// in which steps may lack their type or stand twice.
    ///
    /// # Errors
    /// A message, if the library can't say it.
    pub(super) fn of(tokenizer: &Tokenizer) -> Result<(Self, Self), String> {
        let encoding = [
            serde_json::to_value(tokenizer.get_normalizer()),
            serde_json::to_value(tokenizer.get_pre_tokenizer()),
            serde_json::to_value(tokenizer.get_post_processor()),
        ];
        let decoding = [serde_json::to_value(tokenizer.get_decoder())];
        Ok((Self::of_parts(encoding)?, Self::of_parts(decoding)?))
    }

    fn of_parts(parts: impl IntoIterator<Item = serde_json::Result<Value>>) -> Result<Self, String> {
        let mut growth = Self::default();
        for part in parts {
            growth.add(&part.map_err(|error| error.to_string())?);
        }
        Ok(growth)
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
            Some("Precompiled") => self.0.push(Step::Multiply(longest(&part[TABLE]))),
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

/// Checks a `tokenizer.json` before the library reads it, which takes as much memory as a table of characters says that it has.
///
/// # Errors
/// A message, if it is not JSON, or such a table says that it is longer than it is.
pub(super) fn check_tables(file: &[u8]) -> Result<(), String> {
    #[derive(Deserialize)]
    struct File {
        #[serde(default)]
        normalizer: Value,
    }
    let file: File = serde_json::from_slice(file).map_err(|error| error.to_string())?;
    if are_whole(&file.normalizer) { Ok(()) } else { Err("its table of characters is damaged".into()) }
}

/// Whether all tables of characters in a part of the file are as long as they say.
fn are_whole(part: &Value) -> bool {
    match part {
        Value::Array(items) => items.iter().all(are_whole),
        Value::Object(fields) => fields.iter().all(|(key, value)| {
            if key == TABLE { table(value).as_deref().and_then(replacements).is_some() } else { are_whole(value) }
        }),
        _ => true,
    }
}

/// The key of a table of characters of `SentencePiece`.
const TABLE: &str = "precompiled_charsmap";

fn table(value: &Value) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()
}

/// The replacements in a table of characters: the size of a search tree in four bytes, the tree, and the replacements, each with a
/// zero byte at its end.
fn replacements(table: &[u8]) -> Option<&[u8]> {
    let (size, rest) = table.split_first_chunk::<4>()?;
    rest.get(u32::from_le_bytes(*size) as usize..)
}

/// The length of the longest replacement in a table of characters.
fn longest(value: &Value) -> u64 {
    let table = table(value);
    let replacements = table.as_deref().and_then(replacements);
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
        Growth::of_parts([Ok(normalizer.clone())]).unwrap()
    }

    #[test]
    fn every_part_of_the_file_is_measured() {
        let letters = json!({"type": "ByteLevel"});
        assert_eq!(growth(&json!({"type": "Sequence", "normalizers": vec![&letters; 24]})).of_text(1), 1 << 24);
        let ten = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let [pre_tokenizer, post_processor, decoder] = [
            json!({"type": "Sequence", "pretokenizers": [&letters, &letters]}),
            json!({"type": "TemplateProcessing", "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
            ]}),
            json!({"type": "Sequence", "decoders": vec![ten; 3]}),
        ];
        let encoding = Growth::of_parts([Ok(pre_tokenizer), Ok(post_processor)]).unwrap();
        let decoding = growth(&decoder);
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

    fn tokenizer(normalizer: &Value) -> Vec<u8> {
        let model = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
        json!({"version": "1.0", "added_tokens": [], "normalizer": normalizer, "model": model}).to_string().into_bytes()
    }

    /// The library reads them as the steps that their other fields fit.
    #[test]
    fn steps_without_a_type_are_measured() {
        let ten = json!({"pattern": {"String": "a"}, "content": "aaaaaaaaaa"});
        let tagged = json!({"type": "Sequence", "normalizers": vec![&ten; 8]});
        for steps in [tagged, json!({"normalizers": vec![&ten; 8]})] {
            let read = Tokenizer::from_bytes(tokenizer(&steps)).unwrap();
            assert_eq!(Growth::of(&read).unwrap().0.of_text(3), 300_000_000, "{steps}");
        }
    }

    #[test]
    fn a_table_that_is_shorter_than_it_says_is_refused() {
        use base64::Engine;
        for (size, whole) in [(2_u32, true), (3, false), (u32::MAX, false)] {
            let table = [&size.to_le_bytes()[..], b"xx"].concat();
            let text = base64::engine::general_purpose::STANDARD.encode(table);
            let step = json!({"precompiled_charsmap": text});
            for step in [&step, &json!({"type": "Sequence", "normalizers": [step]})] {
                assert_eq!(check_tables(&tokenizer(step)).is_ok(), whole, "{step}");
            }
        }
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
