//! Turns of a conversation, before a template makes one text of them.

use serde::Deserialize;

/// What LLaVA-1.5 appends to questions that need a short answer.
pub(crate) const SHORT_ANSWER: &str = "\nAnswer the question using a single word or phrase.";

/// What one side says in a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Turn {
    /// `human` or `gpt`.
    pub from: String,
    /// The words.
    pub value: String,
}
