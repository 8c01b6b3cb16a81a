//! What the records of LLaVA's annotation files say: conversations, possibly about images.
//! Independent of templates and tokens.

use serde::Deserialize;
use serde_json::Value;

use crate::text::{
    conversation::Turn,
    json_records::{Broken, RawRecord, in_plain_words},
};

const MESSAGES: &str = "this looks like the `messages` format; LLaVA's format has `conversations`, a list of \
                        {\"from\": \"human\" or \"gpt\", \"value\": \"...\"}";

/// A conversation, possibly about images.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Annotation {
    pub(super) id: String,
    /// Paths relative to the image folder.
    pub(super) images: Vec<String>,
    pub(super) turns: Vec<Turn>,
}

/// Why a record can't be read or used, and where. `message` becomes part of the artifact (`rejected.jsonl`); `help` does
/// not.
pub(super) type ParseError = Broken;

/// What a record of an annotation file says.
pub(super) trait Annotated {
    /// Parses the record.
    fn parse(&self) -> Result<Annotation, ParseError>;
    /// The id of a record that may be broken, for messages.
    fn id(&self) -> Option<String>;
}

impl Annotated for RawRecord<'_> {
    fn parse(&self) -> Result<Annotation, ParseError> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(default)]
            id: Value,
            #[serde(default)]
            image: Value,
            conversations: Vec<Turn>,
        }
        let fields: Fields = serde_json::from_slice(self.text).map_err(|error| {
            let help = value(self).is_some_and(|record| record.get("messages").is_some()).then_some(MESSAGES);
            ParseError { line: self.line + error.line().max(1) - 1, message: in_plain_words(&error), help }
        })?;
        let id = match fields.id {
            Value::Null => String::new(),
            Value::String(id) => id,
            other => other.to_string(),
        };
        let images = images(fields.image).ok_or_else(|| ParseError {
            line: self.line,
            message: "`image` must be the path of an image, or a list of paths".into(),
            help: None,
        })?;
        Ok(Annotation { id, images, turns: fields.conversations })
    }

    fn id(&self) -> Option<String> {
        let id = value(self).map_or_else(|| id_in_text(self.text), |record| record.get("id").cloned())?;
        Some(id.as_str().map_or_else(|| id.to_string(), ToString::to_string))
    }
}

/// The value after the first `"id":` of a text that is not JSON as a whole.
fn id_in_text(text: &[u8]) -> Option<Value> {
    let start = text.windows(4).position(|part| part == b"\"id\"")? + 4;
    let after = text[start..].trim_ascii_start().strip_prefix(b":")?;
    serde_json::Deserializer::from_slice(after).into_iter().next()?.ok()
}

fn value(record: &RawRecord<'_>) -> Option<Value> {
    serde_json::from_slice(record.text).ok()
}

fn images(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(path) => Some(vec![path]),
        Value::Array(paths) => paths.into_iter().map(|path| path.as_str().map(ToString::to_string)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::text::json_records::{Cursor, Records};

    const GOOD: &str = r#"[
  {"id": "a", "image": "x.png", "conversations": [{"from": "human", "value": "brackets ]}[{ and \" quotes"}]},

  {"id": 7, "conversations": [
     {"from": "human", "value": "hi"}]}
]
"#;

    #[test]
    fn records_have_the_line_that_they_begin_on() {
        let records: Vec<_> = Records::new(GOOD.as_bytes(), Cursor::default()).map(Result::unwrap).collect();
        assert_eq!(records.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
        let parsed: Vec<_> = records.iter().map(|r| r.parse().unwrap()).collect();
        assert_eq!((parsed[0].id.as_str(), parsed[1].id.as_str()), ("a", "7"));
        assert_eq!(parsed[0].images, ["x.png"]);
        assert_eq!(parsed[0].turns[0].value, "brackets ]}[{ and \" quotes");
        assert!(parsed[1].images.is_empty());
    }

    #[test]
    fn reading_continues_from_a_cursor() {
        let mut records = Records::new(GOOD.as_bytes(), Cursor::default());
        let first = records.next().unwrap().unwrap();
        let rest: Vec<_> = Records::new(GOOD.as_bytes(), records.cursor()).map(Result::unwrap).collect();
        assert_eq!((first.line, rest.iter().map(|record| record.line).collect::<Vec<_>>()), (2, vec![4]));
    }

    #[test]
    fn a_broken_record_does_not_hide_the_next() {
        let text = "[{\"id\": 1,\n\"conversations\": oops},\n{\"conversations\": []}]";
        let records: Vec<_> = Records::new(text.as_bytes(), Cursor::default()).map(Result::unwrap).collect();
        assert_eq!(records[0].parse().unwrap_err().line, 2);
        assert!(records[1].parse().unwrap().turns.is_empty());
    }
}
