//! Counts records of which training learns less than they say: no labels, labels that were cut off, images that the text does
//! not mention. Independent of how records are stored.

use std::path::Path;

use crate::{Job, StageError, data::share::worth_a_caution, text::conversation::Turn};

/// Records that a message names for each reason.
const NAMED: usize = 3;

/// Why a record has no label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    /// The first answer begins after `max_length`.
    Cut,
    /// No turn is the model's, or the last one has no answer.
    EndsWithQuestion,
    /// An answer without words.
    EmptyAnswer,
    /// The template's arithmetic, as in the reference.
    Mismatched,
    /// Nothing of the above.
    Other,
}

impl Reason {
    const ALL: [Self; 5] = [Self::Cut, Self::EndsWithQuestion, Self::EmptyAnswer, Self::Mismatched, Self::Other];

    /// The reason of a record without labels, of which `whole` tokens were cut to `max_length`.
    pub(super) fn of(turns: &[Turn], mismatched: bool, whole: usize, max_length: usize) -> Self {
        let is_empty = |turn: &Turn| turn.from == "gpt" && turn.value.trim().is_empty();
        if turns.last().is_some_and(|turn| turn.from != "gpt") {
            Self::EndsWithQuestion
        } else if turns.iter().any(is_empty) {
            Self::EmptyAnswer
        } else if whole > max_length {
            Self::Cut
        } else if mismatched {
            Self::Mismatched
        } else {
            Self::Other
        }
    }

    fn describe(self, max_length: usize) -> String {
        match self {
            Self::Cut => format!("the answer begins after `max_length` = {max_length}"),
            Self::EndsWithQuestion => "the conversation ends with a question".into(),
            Self::EmptyAnswer => "an answer is empty".into(),
            Self::Mismatched => {
                "their token count differs from what the template expects (the reference masks them, too); the usual cause \
                 is one of the template's own words in the text"
                    .into()
            }
            Self::Other => "there is no answer in them".into(),
        }
    }
}

/// Records by number and id, of which only the first are kept.
#[derive(Debug, Default)]
struct Named {
    count: usize,
    first: Vec<String>,
}

impl Named {
    fn add(&mut self, number: usize, id: &str) {
        self.count += 1;
        if self.first.len() < NAMED {
            let id: String = id.chars().take(60).collect();
            self.first.push(if id.is_empty() { number.to_string() } else { format!("{number} (id {id})") });
        }
    }

    fn list(&self) -> String {
        let more = if self.count > NAMED { ", ..." } else { "" };
        format!("record {}{more}", self.first.join(", "))
    }
}

/// What was lost of a file's records.
#[derive(Debug, Default)]
pub(super) struct Lost {
    masked: [Named; Reason::ALL.len()],
    cut: Named,
    no_token: Named,
    no_image: Named,
    /// Tokens of the shortest record that was cut.
    shortest_cut: Option<usize>,
}

impl Lost {
    /// Counts a record without labels.
    pub(super) fn add_masked(&mut self, reason: Reason, number: usize, id: &str) {
        if let Some(at) = Reason::ALL.iter().position(|known| *known == reason) {
            self.masked[at].add(number, id);
        }
    }

    /// Counts a record of `whole` tokens that lost labels at its end.
    pub(super) fn add_cut(&mut self, whole: usize, number: usize, id: &str) {
        self.cut.add(number, id);
        self.shortest_cut = Some(self.shortest_cut.map_or(whole, |shortest| shortest.min(whole)));
    }

    /// Counts a record with an image that its text does not mention.
    pub(super) fn add_without_token(&mut self, number: usize, id: &str) {
        self.no_token.add(number, id);
    }

    /// Counts a record without an image whose text mentions one.
    pub(super) fn add_without_image(&mut self, number: usize, id: &str) {
        self.no_image.add(number, id);
    }

    pub(super) fn masked(&self) -> usize {
        self.masked.iter().map(|named| named.count).sum()
    }

    pub(super) fn cut(&self) -> usize {
        self.cut.count
    }

    pub(super) fn without_token(&self) -> usize {
        self.no_token.count
    }

    /// The error of a file in which no record has a label.
    pub(super) fn nothing_left(&self, annotations: &Path, records: usize, max_length: usize) -> StageError {
        let message = format!("none of the {records} record(s) has a label to learn{}", self.reasons(max_length));
        let help = match self.shortest_cut {
            Some(tokens) if self.masked[0].count > 0 => format!(
                "raise `max_length`: the shortest record that was cut has {tokens} tokens (an image counting as one; in \
                 training it counts as its patches)"
            ),
            _ => "give each conversation an answer from `gpt`, with words, at its end".into(),
        };
        StageError::input(annotations, message, help)
    }

    fn reasons(&self, max_length: usize) -> String {
        let reasons = Reason::ALL.iter().zip(&self.masked).filter(|(_, named)| named.count > 0);
        let line = |(reason, named): (&Reason, &Named)| {
            format!("\n{}: {}: {}", named.count, reason.describe(max_length), named.list())
        };
        reasons.map(line).collect()
    }

    /// Warns of what was lost: with the result, if it is a share of the records that matters.
    pub(super) fn warn(&self, job: &Job, annotations: &Path, records: usize, max_length: usize) {
        let file = annotations.display();
        let say = |count: usize, message: String| {
            if worth_a_caution(count, records) {
                job.caution(message);
            } else if count > 0 {
                job.warn(message);
            }
        };
        let masked = self.masked();
        say(
            masked,
            format!(
                "{file}: {masked} of {records} record(s) have no labels, so nothing is learned from them{}",
                self.reasons(max_length)
            ),
        );
        let (cut, shortest) = (self.cut.count, self.shortest_cut.unwrap_or_default());
        say(
            cut,
            format!(
                "{file}: {cut} of {records} record(s) lost labels, because they were cut at `max_length` = {max_length}; the \
                 shortest of them has {shortest} tokens: {}",
                self.cut.list()
            ),
        );
        let count = self.no_token.count;
        say(
            count,
            format!(
                "{file}: {count} of {records} record(s) have an image but no `<image>` in their text, so the model does not see \
                 the image: {}",
                self.no_token.list()
            ),
        );
        let count = self.no_image.count;
        say(
            count,
            format!(
                "{file}: {count} of {records} record(s) say `<image>` but name no image, so it is read as a word: {}",
                self.no_image.list()
            ),
        );
    }
}
