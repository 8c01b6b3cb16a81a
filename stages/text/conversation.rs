//! What is said in a conversation about an image, before a template makes one text of it.

use serde::Deserialize;

/// What LLaVA-1.5 adds to questions that want a short answer.
pub(crate) const SHORT_ANSWER: &str = "\nAnswer the question using a single word or phrase.";

/// What one side says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Turn {
    /// `human` or `gpt`.
    pub from: String,
    /// The words.
    pub value: String,
}
