//! Reads LLaVA's annotation files, JSON arrays of conversations, one record at a time and with line numbers.
//! Independent of templates and tokens.

use serde::Deserialize;
use serde_json::Value;

use crate::text::conversation::Turn;

const MESSAGES: &str = "this looks like the `messages` format; LLaVA's format has `conversations`, a list of \
                        {\"from\": \"human\" or \"gpt\", \"value\": \"...\"}";

/// The text of a record.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawRecord<'a> {
    /// The line that it begins on, from 1.
    pub(super) line: usize,
    text: &'a [u8],
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ParseError {
    pub(super) line: usize,
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
}

impl RawRecord<'_> {
    /// Parses the record.
    pub(super) fn parse(&self) -> Result<Annotation, ParseError> {
        #[derive(Deserialize)]
        struct Fields {
            #[serde(default)]
            id: Value,
            #[serde(default)]
            image: Value,
            conversations: Vec<Turn>,
        }
        let fields: Fields = serde_json::from_slice(self.text).map_err(|error| {
            let text = error.to_string();
            let message = text.split(" at line ").next().unwrap_or_default();
            let help = self.value().is_some_and(|record| record.get("messages").is_some()).then_some(MESSAGES);
            ParseError { line: self.line + error.line().max(1) - 1, message: message.into(), help }
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

    /// The id of a record that may be broken, for messages.
    pub(super) fn id(&self) -> Option<String> {
        self.value()?.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), ToString::to_string))
    }

    fn value(&self) -> Option<Value> {
        serde_json::from_slice(self.text).ok()
    }
}

fn images(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(path) => Some(vec![path]),
        Value::Array(paths) => paths.into_iter().map(|path| path.as_str().map(ToString::to_string)).collect(),
        _ => None,
    }
}

/// Iterates over the records of the array, one at a time. Ends after an error.
pub(super) struct Records<'a> {
    text: &'a [u8],
    cursor: Cursor,
}

/// A position in the array, from which reading can continue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor {
    /// Bytes read so far.
    pub(super) offset: usize,
    line: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Start,
    Inside,
    Ended,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { offset: 0, line: 1, state: State::Start }
    }
}

impl<'a> Records<'a> {
    /// Reads on from `cursor`; `text` is the whole file.
    pub(super) fn new(text: &'a [u8], mut cursor: Cursor) -> Self {
        if cursor.offset == 0 && text.starts_with(b"\xef\xbb\xbf") {
            cursor.offset = 3;
        }
        Self { text, cursor }
    }

    /// The current position.
    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.cursor.offset).copied() {
            match byte {
                b'\n' => self.cursor.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.cursor.offset += 1;
        }
        None
    }

    fn error(&mut self, message: &str) -> ParseError {
        self.cursor.state = State::Ended;
        ParseError { line: self.cursor.line, message: message.into(), help: None }
    }

    /// Skips `[` or `,` before the next record. Returns `None` after the last record.
    fn advance(&mut self) -> Result<Option<()>, ParseError> {
        let first = self.cursor.state == State::Start;
        match (first, self.peek()) {
            (true, Some(b'[')) | (false, Some(b',')) => {
                self.cursor.offset += 1;
                self.cursor.state = State::Inside;
            }
            (true, _) => {
                return Err(self.error("the file must be a JSON array of records, but it does not begin with `[`"));
            }
            (false, Some(b']')) => {}
            (false, None) => return Err(self.error("the file ends inside the array; it may be truncated")),
            (false, Some(_)) => return Err(self.error("expected a comma or `]` after a record")),
        }
        match self.peek() {
            Some(b']') => {
                self.cursor.offset += 1;
                self.cursor.state = State::Ended;
                if self.peek().is_some() {
                    Err(self.error("there is text after the end of the array"))
                } else {
                    Ok(None)
                }
            }
            Some(_) => Ok(Some(())),
            None => Err(self.error("the file ends inside the array; it may be truncated")),
        }
    }

    /// The record at the current position, which is not blank.
    fn record(&mut self) -> Result<RawRecord<'a>, ParseError> {
        let (start, line) = (self.cursor.offset, self.cursor.line);
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        while let Some(byte) = self.text.get(self.cursor.offset).copied() {
            match byte {
                b'\n' => self.cursor.line += 1,
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        self.cursor.offset += 1;
                        return Ok(RawRecord { line, text: &self.text[start..self.cursor.offset] });
                    }
                }
                b',' | b']' | b'}' if depth == 0 => {
                    return Ok(RawRecord { line, text: &self.text[start..self.cursor.offset] });
                }
                _ => {}
            }
            self.cursor.offset += 1;
        }
        self.cursor.line = line;
        Err(self
            .error("the record that begins here never ends: a bracket or a quote is missing, or the file is truncated"))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RawRecord<'a>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cursor.state == State::Ended {
            return None;
        }
        match self.advance() {
            Ok(Some(())) => Some(self.record()),
            Ok(None) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

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

    #[test]
    fn a_broken_array_says_where() {
        for (text, line, words) in [
            ("", 1, "does not begin with `[`"),
            ("{\"id\": 1}", 1, "does not begin with `[`"),
            ("[\n{\"id\": 1},\n", 3, "truncated"),
            ("[\n{\"id\": 1}\n{\"id\": 2}]", 3, "a comma"),
            ("[\n\n{\"id\": [1}\n\n", 3, "never ends"),
            ("[]\nx", 2, "after the end"),
        ] {
            let error = Records::new(text.as_bytes(), Cursor::default()).find_map(Result::err).unwrap();
            assert_eq!(error.line, line, "{text:?}");
            assert!(error.message.contains(words), "{text:?}: {}", error.message);
        }
        assert_eq!(Records::new(b"\xef\xbb\xbf [ ] \n", Cursor::default()).count(), 0);
    }
}
