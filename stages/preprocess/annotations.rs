//! LLaVA's annotation files: a JSON array of conversations, read one record at a time with its line number.
//! Does not know templates or tokens.

use serde::Deserialize;
use serde_json::Value;

use crate::text::conversation::Turn;

/// A record as it stands in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawRecord<'a> {
    /// The line on which it begins, from 1.
    pub(super) line: usize,
    text: &'a [u8],
}

/// A conversation, perhaps about an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Annotation {
    pub(super) id: String,
    /// Paths below the image folder.
    pub(super) images: Vec<String>,
    pub(super) turns: Vec<Turn>,
}

/// Something that can't be read, and the line that it is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) line: usize,
    pub(super) message: String,
}

impl RawRecord<'_> {
    /// Reads the record.
    pub(super) fn parse(&self) -> Result<Annotation, Trouble> {
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
            Trouble { line: self.line + error.line().max(1) - 1, message: message.into() }
        })?;
        let id = match fields.id {
            Value::Null => String::new(),
            Value::String(id) => id,
            other => other.to_string(),
        };
        let images = images(fields.image).ok_or_else(|| Trouble {
            line: self.line,
            message: "`image` must be the path of an image, or a list of paths".into(),
        })?;
        Ok(Annotation { id, images, turns: fields.conversations })
    }

    /// The id of a record that may be broken. For messages.
    pub(super) fn id(&self) -> Option<String> {
        let value: Value = serde_json::from_slice(self.text).ok()?;
        value.get("id").map(|id| id.as_str().map_or_else(|| id.to_string(), ToString::to_string))
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

/// Walks through the array without reading more than a record ahead. After an error it ends.
pub(super) struct Records<'a> {
    text: &'a [u8],
    place: Place,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Bytes read so far.
    pub(super) position: usize,
    line: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Start,
    Inside,
    Ended,
}

impl Default for Place {
    fn default() -> Self {
        Self { position: 0, line: 1, state: State::Start }
    }
}

impl<'a> Records<'a> {
    /// Goes on from `place` in the whole text.
    pub(super) fn new(text: &'a [u8], mut place: Place) -> Self {
        if place.position == 0 && text.starts_with(b"\xef\xbb\xbf") {
            place.position = 3;
        }
        Self { text, place }
    }

    /// Where it is.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.place.position).copied() {
            match byte {
                b'\n' => self.place.line += 1,
                b' ' | b'\t' | b'\r' => {}
                _ => return Some(byte),
            }
            self.place.position += 1;
        }
        None
    }

    fn trouble(&mut self, message: &str) -> Trouble {
        self.place.state = State::Ended;
        Trouble { line: self.place.line, message: message.into() }
    }

    /// Goes past `[` or `,` to the next record; `None` after the last.
    fn advance(&mut self) -> Result<Option<()>, Trouble> {
        let first = self.place.state == State::Start;
        match (first, self.peek()) {
            (true, Some(b'[')) | (false, Some(b',')) => {
                self.place.position += 1;
                self.place.state = State::Inside;
            }
            (true, _) => {
                return Err(self.trouble("the file must hold a JSON array of records: it does not begin with `[`"));
            }
            (false, Some(b']')) => {}
            (false, None) => return Err(self.trouble("the file ends inside the array: is it cut short?")),
            (false, Some(_)) => return Err(self.trouble("a comma or `]` must follow a record")),
        }
        match self.peek() {
            Some(b']') => {
                self.place.position += 1;
                self.place.state = State::Ended;
                if self.peek().is_some() { Err(self.trouble("there is text after the array's end")) } else { Ok(None) }
            }
            Some(_) => Ok(Some(())),
            None => Err(self.trouble("the file ends inside the array: is it cut short?")),
        }
    }

    /// The record at the current position, which is not blank.
    fn record(&mut self) -> Result<RawRecord<'a>, Trouble> {
        let (start, line) = (self.place.position, self.place.line);
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        while let Some(byte) = self.text.get(self.place.position).copied() {
            match byte {
                b'\n' => self.place.line += 1,
                _ if escaped => escaped = false,
                b'\\' if quoted => escaped = true,
                b'"' => quoted = !quoted,
                _ if quoted => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        self.place.position += 1;
                        return Ok(RawRecord { line, text: &self.text[start..self.place.position] });
                    }
                }
                b',' | b']' | b'}' if depth == 0 => {
                    return Ok(RawRecord { line, text: &self.text[start..self.place.position] });
                }
                _ => {}
            }
            self.place.position += 1;
        }
        self.place.line = line;
        Err(self.trouble(
            "the record that begins here never ends: a bracket or a quote is missing, or the file is cut short",
        ))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RawRecord<'a>, Trouble>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.place.state == State::Ended {
            return None;
        }
        match self.advance() {
            Ok(Some(())) => Some(self.record()),
            Ok(None) => None,
            Err(trouble) => Some(Err(trouble)),
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
    fn records_know_the_line_they_begin_on() {
        let records: Vec<_> = Records::new(GOOD.as_bytes(), Place::default()).map(Result::unwrap).collect();
        assert_eq!(records.iter().map(|r| r.line).collect::<Vec<_>>(), [2, 4]);
        let parsed: Vec<_> = records.iter().map(|r| r.parse().unwrap()).collect();
        assert_eq!((parsed[0].id.as_str(), parsed[1].id.as_str()), ("a", "7"));
        assert_eq!(parsed[0].images, ["x.png"]);
        assert_eq!(parsed[0].turns[0].value, "brackets ]}[{ and \" quotes");
        assert!(parsed[1].images.is_empty());
    }

    #[test]
    fn reading_goes_on_from_where_it_was() {
        let mut records = Records::new(GOOD.as_bytes(), Place::default());
        let first = records.next().unwrap().unwrap();
        let rest: Vec<_> = Records::new(GOOD.as_bytes(), records.place()).map(Result::unwrap).collect();
        assert_eq!((first.line, rest.iter().map(|record| record.line).collect::<Vec<_>>()), (2, vec![4]));
    }

    #[test]
    fn a_broken_record_does_not_hide_the_next() {
        let text = "[{\"id\": 1,\n\"conversations\": oops},\n{\"conversations\": []}]";
        let records: Vec<_> = Records::new(text.as_bytes(), Place::default()).map(Result::unwrap).collect();
        assert_eq!(records[0].parse().unwrap_err().line, 2);
        assert!(records[1].parse().unwrap().turns.is_empty());
    }

    #[test]
    fn a_broken_array_says_where() {
        for (text, line, words) in [
            ("", 1, "does not begin with `[`"),
            ("{\"id\": 1}", 1, "does not begin with `[`"),
            ("[\n{\"id\": 1},\n", 3, "cut short"),
            ("[\n{\"id\": 1}\n{\"id\": 2}]", 3, "a comma"),
            ("[\n\n{\"id\": [1}\n\n", 3, "never ends"),
            ("[]\nx", 2, "after the array"),
        ] {
            let trouble = Records::new(text.as_bytes(), Place::default()).find_map(Result::err).unwrap();
            assert_eq!(trouble.line, line, "{text:?}");
            assert!(trouble.message.contains(words), "{text:?}: {}", trouble.message);
        }
        assert_eq!(Records::new(b"\xef\xbb\xbf [ ] \n", Place::default()).count(), 0);
    }
}
