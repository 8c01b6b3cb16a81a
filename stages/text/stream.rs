//! The text of tokens that come one by one: each new piece is decoded once, with what comes before it as context. Independent of
//! models and of how a text ends.

use super::tokenizer::TextTokenizer;

/// As long as a text ends with this, bytes of its last character may be missing.
const INCOMPLETE: char = '\u{fffd}';
/// Up to so many tokens that make no whole text are decoded again with each new one. No character has as many bytes.
const TRIED_EACH_TIME: usize = 8;

/// A text that grows by tokens.
pub struct TextStream<'a> {
    tokenizer: &'a TextTokenizer,
    /// The tokens of the last piece, as context: a decoder may treat the first token of a text otherwise. Then those that are
    /// not told yet.
    ids: Vec<u32>,
    /// The number of tokens of the context.
    told: usize,
}

impl<'a> TextStream<'a> {
    /// An empty text.
    pub fn new(tokenizer: &'a TextTokenizer) -> Self {
        Self { tokenizer, ids: Vec::new(), told: 0 }
    }

    /// The text that `id` completes: nothing while a character lacks bytes. Of long runs of tokens without whole characters,
    /// which only a model without sense makes, text comes late, so that its cost stays proportional to the tokens.
    ///
    /// # Errors
    /// A message, if the id is unknown to the decoder.
    pub fn push(&mut self, id: u32) -> Result<String, String> {
        self.ids.push(id);
        let waiting = self.ids.len() - self.told;
        if waiting > TRIED_EACH_TIME && !waiting.is_power_of_two() {
            return Ok(String::new());
        }
        self.new_text(false)
    }

    /// The text of all tokens that are not told yet, at the end.
    ///
    /// # Errors
    /// A message, if an id is unknown to the decoder.
    pub fn finish(&mut self) -> Result<String, String> {
        self.new_text(true)
    }

    fn new_text(&mut self, is_end: bool) -> Result<String, String> {
        let before = self.tokenizer.decode(&self.ids[..self.told])?;
        let all = self.tokenizer.decode(&self.ids)?;
        // Bytes that are no text change what a decoder made of whole characters right before them.
        let new = match all.strip_prefix(&before) {
            Some(new) => new.to_string(),
            None => self.tokenizer.decode(&self.ids[self.told..])?,
        };
        if new.is_empty() || (!is_end && new.ends_with(INCOMPLETE)) {
            return Ok(String::new());
        }
        self.ids.drain(..self.told);
        self.told = self.ids.len();
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        super::tests::{PHI2, PHI3, QWEN},
        *,
    };

    fn pieces(tokenizer: &TextTokenizer, ids: &[u32]) -> Vec<String> {
        let mut stream = TextStream::new(tokenizer);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        pieces
    }

    fn encode(tokenizer: &TextTokenizer, text: &str) -> Vec<u32> {
        tokenizer.encode(text).unwrap().iter().map(|id| *id as u32).collect()
    }

    #[test]
    fn the_pieces_of_a_text_are_the_text_and_whole_characters() {
        let text = "A chat: 你好, 🙂 naïve e\u{301}  two spaces\n\tand 한국어.";
        for tokenizer in [&*PHI2, &*PHI3, &*QWEN] {
            // Qwen's fixture knows only the tokens of its own texts.
            let text = if std::ptr::eq(tokenizer, &raw const *QWEN) { "A chat between a curious user" } else { text };
            let ids = encode(tokenizer, text);
            let pieces = pieces(tokenizer, &ids);
            assert_eq!(pieces.concat(), tokenizer.decode(&ids).unwrap());
            assert!(!pieces.concat().contains(INCOMPLETE), "{pieces:?}");
            assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 5, "it came in pieces");
        }
        let emoji = pieces(&PHI2, &encode(&PHI2, "a🙂"));
        assert!(emoji.iter().any(|piece| piece.ends_with('🙂')) && emoji.iter().any(String::is_empty), "{emoji:?}");
    }

    #[test]
    fn bytes_that_are_no_text_are_told_and_do_not_hide_what_follows() {
        // The tokens of single bytes: Phi-2's first ids are GPT-2's alphabet.
        let byte = |byte: u8| {
            let printable: Vec<u8> = (33..=126).chain(161..=172).chain(174..=255).collect();
            printable.iter().position(|one| *one == byte).unwrap() as u32
        };
        for (bytes, text) in [
            (vec![0xe2, b'a'], "\u{fffd}a"),
            (vec![0xff, 0xff], "\u{fffd}\u{fffd}"),
            ([vec![0xff; 100], b"end".to_vec()].concat(), &*format!("{}end", "\u{fffd}".repeat(100))),
        ] {
            let ids: Vec<u32> = bytes.iter().map(|one| byte(*one)).collect();
            assert_eq!(pieces(&PHI2, &ids).concat(), text);
            assert_eq!(PHI2.decode(&ids).unwrap(), text);
        }
        // SentencePiece's: a character, then bytes that are none.
        let ids = [encode(&PHI3, "你"), vec![PHI3.id("<0xFF>").unwrap_or(258)], encode(&PHI3, "ok")].concat();
        let told = pieces(&PHI3, &ids).concat();
        assert!(told.contains('你') && told.trim_end().ends_with("ok"), "{told:?}");
    }
}
