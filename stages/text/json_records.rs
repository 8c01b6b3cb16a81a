//! Records in a JSON array or as JSON lines, one at a time and with line numbers. Independent of what is in them.

use imp_model::weights::looks_like;

/// The text of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    /// The line that it begins on, from 1.
    pub(crate) line: usize,
    pub(crate) text: &'a [u8],
}

/// Where a file stops being a list of records, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) line: usize,
    pub(crate) message: String,
    /// What the user can do, if a more specific remedy than the usual is known.
    pub(crate) help: Option<&'static str>,
}

/// Iterates over the records, one at a time. Ends after an error.
pub(crate) struct Records<'a> {
    text: &'a [u8],
    cursor: Cursor,
}

/// A position in the array, from which reading can continue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor {
    /// Bytes read so far.
    pub(crate) offset: usize,
    line: usize,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Start,
    Inside,
    /// Between records that no brackets surround.
    Lines,
    Ended,
}

impl Default for Cursor {
    fn default() -> Self {
        Self { offset: 0, line: 1, state: State::Start }
    }
}

impl<'a> Records<'a> {
    /// Reads on from `cursor`; `text` is the whole file.
    pub(crate) fn new(text: &'a [u8], mut cursor: Cursor) -> Self {
        if cursor.offset == 0 && text.starts_with(b"\xef\xbb\xbf") {
            cursor.offset = 3;
        }
        Self { text, cursor }
    }

    /// The current position.
    pub(crate) fn cursor(&self) -> Cursor {
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

    fn error(&mut self, message: &str) -> Broken {
        self.cursor.state = State::Ended;
        Broken { line: self.cursor.line, message: message.into(), help: None }
    }

    /// Skips `[` or `,` before the next record. Returns `None` after the last record.
    fn advance(&mut self) -> Result<Option<()>, Broken> {
        let first = self.cursor.state == State::Start;
        if first && self.peek() == Some(b'{') || self.cursor.state == State::Lines {
            self.cursor.state = State::Lines;
            return match self.peek() {
                Some(b'{') => Ok(Some(())),
                Some(_) => Err(self.error("expected `{`, which begins a record of JSON lines")),
                None => Ok(None),
            };
        }
        match (first, self.peek()) {
            (true, Some(b'[')) | (false, Some(b',')) => {
                self.cursor.offset += 1;
                self.cursor.state = State::Inside;
            }
            (true, Some(_)) => return Err(self.what_instead()),
            (true, None) => return Err(self.error("the file is empty")),
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

    /// The error of a file that holds no records at all.
    fn what_instead(&mut self) -> Broken {
        let (message, help) = match self.text {
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [_, 0, _, 0, ..] | [0, _, 0, _, ..] => (
                "the file is text in UTF-16".into(),
                Some("save it as UTF-8; in PowerShell: `Out-File -Encoding utf8`"),
            ),
            [b'P', b'A', b'R', b'1', ..] => {
                ("this is a Parquet file".into(), Some("write its rows as JSON lines, and its images as files"))
            }
            text => {
                let neither =
                    "the file must be a JSON array of records or JSON lines, but it begins with neither `[` nor `{`";
                (looks_like(text).map_or_else(|| neither.into(), |what| format!("this is {what}")), None)
            }
        };
        Broken { help, ..self.error(&message) }
    }

    /// The record at the current position, which is not blank.
    fn record(&mut self) -> Result<RawRecord<'a>, Broken> {
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
    type Item = Result<RawRecord<'a>, Broken>;

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

/// What is wrong with a JSON text, in the words of someone who has not read the program.
pub(crate) fn in_plain_words(error: &serde_json::Error) -> String {
    let whole = error.to_string();
    let said = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(said, _)| said);
    if let Some((found, expected)) =
        said.strip_prefix("invalid type: ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        return format!("there is {} where {} must be", plain(found), plain(expected));
    }
    if let Some((found, expected)) =
        said.strip_prefix("invalid value: ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        return format!("{} can't stand where {} must be", plain(found), plain(expected));
    }
    if let Some(key) = said.strip_prefix("missing field ") {
        return format!("the key {key} is missing");
    }
    if let Some(rest) = said.strip_prefix("unknown variant ") {
        return match rest.split_once(", expected ") {
            Some((found, known)) => format!("{} is none of {}", short(found), known.trim_start_matches("one of ")),
            None => format!("{} is not known here", short(rest)),
        };
    }
    if let Some(rest) = said.strip_prefix("unknown field ") {
        return format!("the key {} is not known here", short(rest.split(',').next().unwrap_or(rest)));
    }
    if said.starts_with("data did not match any variant") {
        return "there is a value of a kind that can't stand here".into();
    }
    if said.starts_with("EOF while parsing") {
        return "the text ends too early: a bracket or a quote is missing, or the file is truncated".into();
    }
    if said == "expected value" {
        return "there is something that is not a JSON value".into();
    }
    if said.starts_with("invalid length ") {
        return "a list has too few or too many items".into();
    }
    short(said)
}

/// The name of a kind of value.
fn plain(kind: &str) -> String {
    match kind {
        "map" => "an object".into(),
        "sequence" | "a sequence" => "a list".into(),
        "null" | "unit" => "null".into(),
        "u64" | "i64" | "usize" | "u32" | "integer" => "a whole number".into(),
        "f64" | "f32" => "a number".into(),
        kind if kind.starts_with("struct ") || kind == "a map" => "an object".into(),
        kind => match kind.split_once(' ') {
            Some(("integer" | "floating", rest)) => format!("the number {}", short(rest.trim_start_matches("point "))),
            Some(("string", rest)) => format!("the text {}", short(rest)),
            Some(("boolean", rest)) => short(rest),
            _ => short(kind),
        },
    }
}

/// A text that may be very long, cut for messages. Line breaks are kept.
pub(crate) fn short(text: &str) -> String {
    const LONGEST: usize = 300;
    match text.char_indices().nth(LONGEST) {
        None => text.into(),
        Some((end, _)) => format!("{}... ({} characters)", &text[..end], text.chars().count()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_broken_list_says_where_and_what_it_looks_like() {
        for (text, line, words) in [
            (&b""[..], 1, "is empty"),
            (b"x", 1, "neither `[` nor `{`"),
            (b"[\n{\"id\": 1},\n", 3, "truncated"),
            (b"[\n{\"id\": 1}\n{\"id\": 2}]", 3, "a comma"),
            (b"[\n\n{\"id\": [1}\n\n", 3, "never ends"),
            (b"[]\nx", 2, "after the end"),
            (b"{\"id\": 1}\n\n[2]", 3, "begins a record of JSON lines"),
            (b"\xff\xfe[\0{\0", 1, "UTF-16"),
            (b"PAR1\x15\x04", 1, "a Parquet file"),
            (b"version https://git-lfs.github.com/spec/v1\n", 1, "a pointer of Git LFS"),
            (b"<!doctype html>", 1, "a web page"),
        ] {
            let error = Records::new(text, Cursor::default()).find_map(Result::err).unwrap();
            assert_eq!(error.line, line, "{text:?}");
            assert!(error.message.contains(words), "{text:?}: {}", error.message);
        }
        assert_eq!(Records::new(b"\xef\xbb\xbf [ ] \n", Cursor::default()).count(), 0);
    }

    #[test]
    fn lines_are_read_like_an_array() {
        let text = b"\xef\xbb\xbf{\"id\": 1}\r\n\r\n{\"id\":\n 2} {\"id\": 3}\r\n";
        let records: Vec<_> = Records::new(text, Cursor::default()).map(Result::unwrap).collect();
        assert_eq!(records.iter().map(|record| record.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert_eq!(records[1].text, b"{\"id\":\n 2}");
        let mut again = Records::new(text, Cursor::default());
        again.next().unwrap().unwrap();
        assert_eq!(Records::new(text, again.cursor()).count(), 2);
    }

    #[test]
    fn errors_are_in_plain_words() {
        #[derive(Debug, serde::Deserialize)]
        #[allow(dead_code, reason = "only read")]
        struct Line {
            id: u64,
            words: Vec<String>,
        }
        for (text, words) in [
            ("{\"id\": {}, \"words\": []}", "there is an object where a whole number must be"),
            ("{\"id\": 1, \"words\": \"a\"}", "there is the text \"a\" where a list must be"),
            ("{\"id\": 1}", "the key `words` is missing"),
            ("{\"id\": 1.5, \"words\": []}", "there is the number `1.5` where a whole number must be"),
        ] {
            let error = serde_json::from_str::<Line>(text).unwrap_err();
            assert!(in_plain_words(&error).starts_with(words), "{}: {}", text, in_plain_words(&error));
        }
        let long = format!("{{\"id\": \"{}\"}}", "x".repeat(1 << 20));
        let error = serde_json::from_str::<Line>(&long).unwrap_err();
        assert!(in_plain_words(&error).len() < 500);
    }
}
