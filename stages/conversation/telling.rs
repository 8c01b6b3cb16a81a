//! The text of an answer while it grows: what of it is certain, and where it ends. Independent of models.

use crate::text::{stream::TextStream, tokenizer::TextTokenizer};

/// An answer's text, which comes token by token.
pub(super) struct Telling<'a> {
    stream: TextStream<'a>,
    /// Texts that end the answer and are no part of it.
    ends: Vec<String>,
    text: String,
    /// Bytes of `text` that were told.
    told: usize,
    ended: bool,
}

impl<'a> Telling<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, ends: Vec<String>) -> Self {
        let ends = ends.into_iter().filter(|end| !end.is_empty()).collect();
        Self { stream: TextStream::new(tokenizer), ends, text: String::new(), told: 0, ended: false }
    }

    /// Adds a token. Returns what has become certain.
    pub(super) fn push(&mut self, token: u32) -> Result<&str, String> {
        let new = self.stream.push(token)?;
        self.grow(&new);
        let certain = if self.ended { self.text.trim_end().len() } else { self.certain() };
        Ok(self.tell(certain))
    }

    /// Whether a text has ended the answer.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the rest, when no token follows.
    pub(super) fn finish(&mut self) -> Result<&str, String> {
        let new = self.stream.finish()?;
        self.grow(&new);
        Ok(self.tell(self.text.trim_end().len()))
    }

    /// The whole answer, without white space around it.
    pub(super) fn into_text(mut self) -> String {
        self.text.truncate(self.text.trim_end().len());
        self.text
    }

    fn grow(&mut self, new: &str) {
        if self.ended {
            return;
        }
        let new = if self.text.is_empty() { new.trim_start() } else { new };
        // An end may have begun in what came before.
        let longest = self.ends.iter().map(String::len).max().unwrap_or(0);
        let from = self.text.floor_char_boundary(self.text.len().saturating_sub(longest));
        self.text.push_str(new);
        let found = self.ends.iter().filter_map(|end| self.text[from..].find(end.as_str())).min();
        if let Some(end) = found {
            self.text.truncate(from + end);
            self.ended = true;
        }
    }

    /// How much of a text that still grows is certain: not the white space at its end, nor what may become the end of the answer.
    fn certain(&self) -> usize {
        let begun = |end: &String| {
            let lengths = (1..end.len()).rev().filter(|length| end.is_char_boundary(*length));
            lengths.into_iter().find(|length| self.text.ends_with(&end[..*length])).unwrap_or(0)
        };
        let open = self.ends.iter().map(begun).max().unwrap_or(0);
        self.text[..self.text.len() - open].trim_end().len()
    }

    fn tell(&mut self, certain: usize) -> &str {
        let from = self.told.min(certain);
        self.told = self.told.max(certain);
        &self.text[from..certain]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::text::tests::PHI2;

    fn told(text: &str, ends: &[&str]) -> (Vec<String>, String, bool) {
        let mut telling = Telling::new(&PHI2, ends.iter().map(ToString::to_string).collect());
        let mut parts = Vec::new();
        for id in PHI2.encode(text).unwrap() {
            parts.push(telling.push(id as u32).unwrap().to_string());
            if telling.has_ended() {
                break;
            }
        }
        parts.push(telling.finish().unwrap().to_string());
        let ended = telling.has_ended();
        (parts, telling.into_text(), ended)
    }

    #[test]
    fn what_is_told_is_the_answer_without_its_end() {
        for (text, ends, answer, ended) in [
            ("  A red circle, and more.  ", &[][..], "A red circle, and more.", false),
            (" Red</ s> USER: more", &["</ s>"], "Red", true),
            ("One. Two. Three.", &["Two", "One. T"], "", true),
            ("One\n\nTwo", &["\n"], "One", true),
            ("a < b </", &["</s>"], "a < b </", false),
            ("你好。再见。", &["再"], "你好。", true),
            ("stop", &["stop"], "", true),
            ("   ", &[], "", false),
        ] {
            let (parts, text, has_ended) = told(text, ends);
            assert_eq!((&*text, has_ended), (answer, ended));
            assert_eq!(parts.concat(), answer, "{parts:?}");
        }
        let (parts, ..) = told("a < b and more words", &["</s>"]);
        assert!(parts.iter().filter(|part| !part.is_empty()).count() > 4, "{parts:?}");
        assert!(!parts.iter().any(|part| part.ends_with('<')), "it may be the end: {parts:?}");
    }
}
