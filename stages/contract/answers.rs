//! The file of answers that a stage may leave in its output: what people look at to see what a model says. In LLaVA's format, with
//! more in `metadata`. Independent of who answers and who looks.

use serde::{Deserialize, Serialize};

/// The file in the output folder: one [`AnswerLine`] per line.
pub const ANSWERS: &str = "answers.jsonl";

/// One answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AnswerLine {
    /// A number or a text. The same question has the same id and prompt in the answers of every model.
    pub question_id: serde_json::Value,
    /// The complete question.
    #[serde(default)]
    pub prompt: String,
    /// The answer.
    pub text: String,
    /// What LLaVA's scripts write; [`AnswerLine::question_id`] as text.
    #[serde(default)]
    pub answer_id: String,
    /// What LLaVA's scripts write.
    #[serde(default)]
    pub model_id: String,
    /// What else is known.
    #[serde(default)]
    pub metadata: AnswerMetadata,
}

/// What else is known of an answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AnswerMetadata {
    /// The question's category in its benchmark; empty if there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub category: String,
    /// The image that the model saw, as `INPUT/PATH`: the name of an input of the stage, and the path of a file in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The right answers, the most frequent first. Empty if they are not known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub truth: Vec<String>,
    /// From 0 to 1, as the benchmark's scorer rates this answer alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
}
