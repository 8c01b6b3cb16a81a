//! The conversation templates: their names, their tokens, how a question is asked, and what ends an answer. How conversations
//! become tokens to learn is in `template/encoding.rs`, how one is continued in `template/dialogue.rs`. Independent of files and images.

mod dialogue;
mod encoding;

use imp_model::config::Family;
use serde::{Deserialize, Serialize};

pub use self::{dialogue::Round, encoding::Encoded};
use super::tokenizer::{IMAGE_TEXT, TextTokenizer};
use crate::StageError;

/// The system text of all templates but `plain`.
pub const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives \
                          helpful, detailed, and polite answers to the user's questions.";
/// Ends an answer of `phi2`.
pub const PHI2_END: &str = "</s>";
/// Begins a turn of `qwen2`.
const CHATML_START: &str = "<|im_start|>";
/// Ends a turn of `qwen2`.
const CHATML_END: &str = "<|im_end|>";
/// Begins every text of `phi3` and `vicuna_v1`.
pub const BEGIN: &str = "<s>";
/// Ends a turn of `phi3`.
const PHI3_END: &str = "<|end|>";
/// Stands between the end of a question and its answer in `phi3`.
const PHI3_ANSWER: &str = "\n<|assistant|>\n";
/// Pads in `vicuna_v1`.
const UNKNOWN: &str = "<unk>";
/// Pads in the others, and stands for the unknown in `phi2`.
pub const PAD: &str = "<|endoftext|>";

/// A template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// Stage 1: the image, a caption and a newline. Only the image token is masked.
    Plain,
    /// `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`; only answers are learned.
    Phi2,
    /// ChatML, as in Qwen1.5 and `SmolLM2`: `<|im_start|>user`, a newline, the question, `<|im_end|>` and so on; only
    /// answers and their ends are learned.
    Qwen2,
    /// `<|system|>`, `<|user|>` and `<|assistant|>`, each on a line of its own, and turns that end with `<|end|>`; only answers
    /// and their ends are learned.
    Phi3,
    /// LLaVA-1.5's: the text of `phi2`, for tokenizers of Llama 1 and 2, in which `</s>` is one token.
    VicunaV1,
}

impl Template {
    const ALL: [Self; 5] = [Self::Plain, Self::Phi2, Self::Qwen2, Self::Phi3, Self::VicunaV1];

    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Phi2 => "phi2",
            Self::Qwen2 => "qwen2",
            Self::Phi3 => "phi3",
            Self::VicunaV1 => "vicuna_v1",
        }
    }

    /// The template with this name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.name() == name)
    }

    /// The templates of conversations, for messages.
    pub(crate) fn choices() -> String {
        let talks = Self::ALL.into_iter().filter(|template| *template != Self::Plain);
        talks.map(|template| format!("`{}`", template.name())).collect::<Vec<_>>().join(", ")
    }

    /// The special tokens of its texts.
    pub(crate) fn tokens(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Phi2 => &[PAD, PHI2_END],
            Self::Qwen2 => &[CHATML_START, CHATML_END, PAD],
            Self::Phi3 => &["<|system|>", "<|user|>", "<|assistant|>", PHI3_END, PAD, BEGIN],
            Self::VicunaV1 => &[BEGIN, PHI2_END, UNKNOWN],
        }
    }

    /// Adds the template's token that the tokenizer's file lacks: `</s>` as the next free id (50295 for Phi-2).
    ///
    /// # Errors
    /// If the tokenizer is of another family.
    pub fn prepare(self, tokenizer: &mut TextTokenizer) -> Result<(), StageError> {
        if self == Self::Phi2 && tokenizer.id(PAD).is_some() {
            tokenizer.add_special(PHI2_END);
        }
        let Some(token) = self.tokens().iter().find(|token| tokenizer.id(token).is_none()) else { return Ok(()) };
        Err(StageError::failed(
            format!("the tokenizer has no token `{token}`, which the template `{}` needs", self.name()),
            "give a language model of the template's family, or the template of its own family",
        ))
    }

    /// The template of a model's family, if there is one.
    pub fn of_family(family: Family, tokenizer: &TextTokenizer) -> Option<Self> {
        match family {
            Family::Phi => Some(Self::Phi2),
            Family::Qwen2 => Some(Self::Qwen2),
            // Llamas are trained with many templates; the tokens of this one tell which.
            Family::Llama => Some(Self::Qwen2).filter(|_| tokenizer.id(CHATML_END).is_some()),
            Family::Phi3 => Some(Self::Phi3).filter(|_| tokenizer.id(PHI3_END).is_some()),
        }
    }

    /// The text that ends an answer.
    pub fn stop_text(self) -> &'static str {
        match self {
            Self::Qwen2 => CHATML_END,
            Self::Phi3 => PHI3_END,
            Self::Plain | Self::Phi2 | Self::VicunaV1 => PHI2_END,
        }
    }

    /// The tokens between the turns of a conversation. What is said in a turn can't contain them.
    pub fn turn_tokens(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Phi2 => &[PHI2_END, PAD],
            Self::Qwen2 => &[CHATML_START, CHATML_END, PAD],
            Self::Phi3 => &["<|system|>", "<|user|>", "<|assistant|>", PHI3_END, PAD],
            Self::VicunaV1 => &[PHI2_END],
        }
    }

    /// The ids that end an answer.
    pub fn stop_ids(self, tokenizer: &TextTokenizer) -> Vec<u32> {
        [self.stop_text(), PAD].iter().filter_map(|token| tokenizer.id(token)).collect()
    }

    /// The prompt that asks one question about one image.
    pub fn prompt(self, question: &str) -> String {
        match self {
            Self::Plain => IMAGE_TEXT.into(),
            _ => self.prompt_without_image(&format!("{IMAGE_TEXT}\n{question}")),
        }
    }

    /// The prompt that asks one question. `plain` has none.
    pub fn prompt_without_image(self, question: &str) -> String {
        match self {
            Self::Plain => String::new(),
            Self::Phi2 | Self::VicunaV1 => format!("{SYSTEM} USER: {question} ASSISTANT:"),
            Self::Qwen2 => chatml_system() + &chatml_question(question),
            Self::Phi3 => phi3_system() + &phi3_question(question) + PHI3_ANSWER,
        }
    }
}

fn chatml_system() -> String {
    format!("{CHATML_START}system\n{SYSTEM}{CHATML_END}\n")
}

/// A question, up to where its answer begins.
fn chatml_question(question: &str) -> String {
    format!("{CHATML_START}user\n{question}{CHATML_END}\n{CHATML_START}assistant\n")
}

fn phi3_system() -> String {
    format!("<|system|>\n{SYSTEM}{PHI3_END}")
}

fn phi3_question(question: &str) -> String {
    format!("\n<|user|>\n{question}{PHI3_END}")
}
