//! Stop strings. Different token sequences can have the same text, so the decoded text is searched. Reference: LLaVA's
//! `KeywordsStoppingCriteria`.

use std::ops::ControlFlow;

/// Strings that end an answer, and the tokenizer's decoder.
pub struct StopStrings<D> {
    strings: Vec<String>,
    decode: D,
}

impl<D: Fn(&[u32]) -> String> StopStrings<D> {
    /// `decode` converts token ids to text.
    pub fn new(strings: impl IntoIterator<Item = String>, decode: D) -> Self {
        Self { strings: strings.into_iter().filter(|string| !string.is_empty()).collect(), decode }
    }

    /// Returns `Break` if the end of `answer` contains a stop string: the return value of [`crate::Imp::stream`]'s
    /// callback.
    pub fn check(&self, answer: &[u32]) -> ControlFlow<()> {
        // All but special tokens have at least one byte; the decoder needs a few more tokens as context.
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let tail = &answer[answer.len().saturating_sub(longest + 8)..];
        let text = if longest > 0 { (self.decode)(tail) } else { String::new() };
        if self.strings.iter().any(|string| text.contains(string.as_str())) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    /// The text of a whole answer up to the first stop string.
    pub fn text(&self, answer: &[u32]) -> String {
        let mut text = (self.decode)(answer);
        if let Some(end) = self.strings.iter().filter_map(|string| text.find(string.as_str())).min() {
            text.truncate(end);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_string_ends_the_answer_in_every_tokenization() {
        let spell = |tokens: &[u32]| tokens.iter().map(|token| ["a", "##", "#", "b##", "é"][*token as usize]).collect();
        let stop = StopStrings::new(["###".to_string(), String::new()], spell);
        for (answer, ends) in [(vec![0, 1], false), (vec![0, 1, 2], true), (vec![0, 2, 1], true), (vec![3, 2], true)] {
            assert_eq!(stop.check(&answer).is_break(), ends, "{answer:?}");
        }
        assert_eq!(stop.text(&[4, 0, 3, 2, 0]), "éab");
        assert_eq!(stop.text(&[0, 1]), "a##");
        assert!(StopStrings::new([], spell).check(&[1, 2]).is_continue());
    }
}
