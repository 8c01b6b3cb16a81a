//! Text files with a checksum in their last line, so that a flipped bit in a figure does not go unnoticed.
//! Independent of what the JSON is about.
//!
//! The checksum is that of the bytes before it, not of the values: it does not depend on how a number is written.

use serde::Serialize;

use super::Digest;

/// How a file with a checksum begins. Without it, a flipped bit in the name of the checksum would make the file one without.
const START: &str = "{\n  \"sealed\": true,";
/// What stands before the checksum, which is followed by a closing brace.
const FIELD: &str = ",\n  \"checksum\": \"";
const END: &str = "\"\n}";

/// The JSON of a struct with a field `checksum` at its end.
pub(super) fn seal(value: &impl Serialize) -> serde_json::Result<Vec<u8>> {
    let mut text = serde_json::to_string_pretty(value)?;
    if let Some(fields) = text.strip_prefix('{').and_then(|text| text.strip_suffix("\n}")) {
        let open = format!("{START}{fields}");
        let checksum = Digest::of(open.as_bytes());
        text = format!("{open}{FIELD}{checksum}{END}");
    }
    Ok(text.into_bytes())
}

/// The bytes of a file without white space at its end, unless its checksum is wrong. Files of older versions have none.
pub(super) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let bytes = bytes.trim_ascii_end();
    let field = bytes.windows(FIELD.len()).rposition(|window| window == FIELD.as_bytes());
    let Some(field) = field else { return (!bytes.starts_with(START.as_bytes())).then_some(bytes) };
    let (content, rest) = bytes.split_at(field);
    let checksum = rest[FIELD.len()..].strip_suffix(END.as_bytes())?;
    let checksum = Digest::from_hex(std::str::from_utf8(checksum).ok()?)?;
    (Digest::of(content) == checksum).then_some(bytes)
}

/// Whether an intact file has a checksum.
pub(super) fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(START.as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_flipped_bit_of_the_content_is_noticed() {
        let sealed = seal(&serde_json::json!({"accuracy": 0.5, "text": "x"})).unwrap();
        assert_eq!(unseal(&sealed), Some(&*sealed));
        let value: serde_json::Value = serde_json::from_slice(unseal(&sealed).unwrap()).unwrap();
        assert_eq!(value["accuracy"], 0.5);
        let content = sealed.windows(FIELD.len()).position(|window| window == FIELD.as_bytes()).unwrap();
        for bit in 0..content * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&flipped), None, "bit {bit}");
        }
        for cut in START.len()..sealed.len() {
            assert_eq!(unseal(&sealed[..cut]), None, "cut at {cut}");
        }
        let renamed = String::from_utf8(sealed).unwrap().replace("checksum", "chfcksum").replace("0.5", "0.9");
        assert_eq!(unseal(renamed.as_bytes()), None);
    }

    #[test]
    fn files_without_a_checksum_are_valid() {
        let old = serde_json::to_vec_pretty(&serde_json::json!({"a": 1})).unwrap();
        assert_eq!(unseal(&old), Some(&*old));
        let sealed = [seal(&serde_json::json!({"a": 1})).unwrap(), b"\n ".to_vec()].concat();
        assert!(unseal(&sealed).is_some(), "white space at the end is not damage");
    }
}
