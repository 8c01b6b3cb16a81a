//! The conversation templates: how turns become one text, which tokens are learned, and what ends an answer.
//! Equal to Imp's `preprocess_*` token for token (`text/fixtures`). Independent of files and images.

use imp_model::{config::Family, tensor::IGNORE};
use serde::{Deserialize, Serialize};

use super::{
    conversation::Turn,
    tokenizer::{IMAGE_TEXT, TextTokenizer},
};
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

/// A conversation in tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids; -200 stands for an image.
    pub input_ids: Vec<i32>,
    /// Of the same length: the id to predict, or -100.
    pub labels: Vec<i32>,
    /// The rounds did not add up to the whole, so every label is -100, as in the reference.
    pub mismatched: bool,
    /// Tokens of the whole conversation, of which `input_ids` may be the beginning only.
    pub whole: usize,
}

impl Template {
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
        let all = [Self::Plain, Self::Phi2, Self::Qwen2, Self::Phi3, Self::VicunaV1];
        all.into_iter().find(|template| template.name() == name)
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

    /// A training conversation in tokens. `max_length` only decides what the reference's check of its own arithmetic
    /// does, and where a text without an image is cut; sequences with images are not cut here.
    ///
    /// # Errors
    /// Why the conversation can't be used.
    pub fn encode(
        self,
        tokenizer: &TextTokenizer,
        turns: &[Turn],
        has_image: bool,
        max_length: usize,
    ) -> Result<Encoded, String> {
        self.encode_with(tokenizer, turns, usize::from(has_image), max_length)
    }

    /// The same for a conversation about several images. With one, each turn has at most one `<image>`, as in the reference.
    ///
    /// # Errors
    /// Why the conversation can't be used.
    pub fn encode_with(
        self,
        tokenizer: &TextTokenizer,
        turns: &[Turn],
        images: usize,
        max_length: usize,
    ) -> Result<Encoded, String> {
        let has_image = images > 0;
        let turns = if has_image { images_first(turns, images) } else { turns.to_vec() };
        let text = Text { tokenizer, has_image, max_length };
        match self {
            Self::Plain => encode_plain(tokenizer, &turns),
            Self::Phi2 => encode_phi2(&text, &turns, PAD),
            Self::Qwen2 => encode_chatml(&text, &turns),
            Self::Phi3 => encode_phi3(&text, &turns),
            Self::VicunaV1 => encode_phi2(&text, &turns, UNKNOWN),
        }
    }
}

/// Moves `<image>` to the beginning of its turn (the reference's `preprocess_multimodal`, which knows one image only).
fn images_first(turns: &[Turn], images: usize) -> Vec<Turn> {
    let moved = |turn: &Turn| {
        let mut turn = turn.clone();
        let count = turn.value.matches(IMAGE_TEXT).count().min(images);
        if count > 0 {
            let words = strip(&turn.value.replace(IMAGE_TEXT, "")).to_string();
            turn.value = strip(&format!("{}{words}", format!("{IMAGE_TEXT}\n").repeat(count))).to_string();
        }
        turn
    };
    turns.iter().map(moved).collect()
}

/// Python's `str.strip`, which counts four separators as white space that Rust's `trim` keeps.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

fn encode_plain(tokenizer: &TextTokenizer, turns: &[Turn]) -> Result<Encoded, String> {
    let [question, caption] = turns else {
        return Err(format!("the template `plain` takes a question and a caption, not {} turns", turns.len()));
    };
    if !question.value.contains(IMAGE_TEXT) {
        return Err("the template `plain` needs `<image>` in the first turn, and an `image`".into());
    }
    let input_ids = tokenizer.encode_with_images(&format!("{IMAGE_TEXT}{}\n", caption.value))?;
    let mut labels = input_ids.clone();
    let image_tokens = tokenizer.encode_with_images(IMAGE_TEXT)?.len();
    labels[..image_tokens].fill(IGNORE);
    // A caption that says `<image>`, too, keeps the label -200 there, as in the reference: the splice drops it.
    let whole = input_ids.len();
    Ok(Encoded { input_ids, labels, mismatched: false, whole })
}

/// How the text of a conversation becomes tokens.
struct Text<'a> {
    tokenizer: &'a TextTokenizer,
    has_image: bool,
    max_length: usize,
}

impl Text<'_> {
    fn encode(&self, text: &str) -> Result<Vec<i32>, String> {
        if self.has_image { self.tokenizer.encode_with_images(text) } else { self.tokenizer.encode(text) }
    }

    /// The number of tokens of `text`, without those that begin every text.
    fn len(&self, text: &str) -> Result<usize, String> {
        Ok(self.encode(text)?.len().saturating_sub(self.tokenizer.leading()))
    }

    /// A whole conversation, in which everything is learned so far except what begins every text.
    fn conversation(&self, text: &str) -> Result<Masking, String> {
        let mut input_ids = self.encode(text)?;
        let whole = input_ids.len();
        if !self.has_image {
            input_ids.truncate(self.max_length);
        }
        let mut masking = Masking { labels: input_ids.clone(), input_ids, done: 0, whole };
        masking.skip(self.tokenizer.leading());
        Ok(masking)
    }
}

/// A conversation whose labels are set from left to right.
struct Masking {
    input_ids: Vec<i32>,
    labels: Vec<i32>,
    /// Tokens that are settled.
    done: usize,
    /// Tokens of the whole conversation.
    whole: usize,
}

impl Masking {
    /// Masks the next `tokens`.
    fn skip(&mut self, tokens: usize) {
        self.round(tokens, tokens);
    }

    /// Masks the first `question` of the next `tokens`.
    fn round(&mut self, question: usize, tokens: usize) {
        mask(&mut self.labels, self.done, self.done + question);
        self.done += tokens;
    }

    /// Masks what follows the last round. The reference checks its arithmetic: a conversation whose rounds don't add up
    /// to the whole (tokens that are `pad` not counted) is masked out.
    fn finish(mut self, text: &Text<'_>, pad: &str) -> Encoded {
        let pad = text.tokenizer.id(pad).map(|id| id as i32);
        let unpadded = self.input_ids.iter().filter(|id| Some(**id) != pad).count();
        mask(&mut self.labels, self.done, usize::MAX);
        let mismatched = self.done < text.max_length && self.done != unpadded;
        if mismatched {
            self.labels.fill(IGNORE);
        }
        Encoded { input_ids: self.input_ids, labels: self.labels, mismatched, whole: self.whole }
    }
}

fn encode_phi2(text: &Text<'_>, turns: &[Turn], pad: &str) -> Result<Encoded, String> {
    let prompt = phi2_text(turns)?;
    let mut masking = text.conversation(&prompt)?;
    for round in prompt.split(PHI2_END).take_while(|round| !round.is_empty()) {
        let Some(question) = single_split(round, " ASSISTANT: ") else { break };
        // The question's encoding ends with the space after "ASSISTANT:", which in the round belongs to the answer; the
        // round has its `</s>`.
        masking.round(text.len(question)?.saturating_sub(1), text.len(round)? + 1);
    }
    Ok(masking.finish(text, pad))
}

fn chatml_system() -> String {
    format!("{CHATML_START}system\n{SYSTEM}{CHATML_END}\n")
}

/// A question, up to where its answer begins.
fn chatml_question(question: &str) -> String {
    format!("{CHATML_START}user\n{question}{CHATML_END}\n{CHATML_START}assistant\n")
}

fn encode_chatml(text: &Text<'_>, turns: &[Turn]) -> Result<Encoded, String> {
    let turns = without_empty(alternating(turns)?)?;
    let (pairs, []) = turns.as_chunks::<2>() else { return Err("the conversation ends without an answer".into()) };
    let rounds: Vec<(String, String)> = pairs
        .iter()
        .map(|[question, answer]| {
            let question = chatml_question(&question.value);
            let round = format!("{question}{}{CHATML_END}", answer.value);
            (question, round)
        })
        .collect();
    let whole: Vec<&str> = rounds.iter().map(|(_, round)| round.as_str()).collect();
    let mut masking = text.conversation(&(chatml_system() + &whole.join("\n")))?;
    masking.skip(text.len(&chatml_system())?);
    for (number, (question, round)) in rounds.iter().enumerate() {
        if number > 0 {
            masking.skip(1); // the newline between two rounds
        }
        masking.round(text.len(question)?, text.len(round)?);
    }
    Ok(masking.finish(text, PAD))
}

fn phi3_system() -> String {
    format!("<|system|>\n{SYSTEM}{PHI3_END}")
}

fn phi3_question(question: &str) -> String {
    format!("\n<|user|>\n{question}{PHI3_END}")
}

/// The reference splits the finished text again: a turn that contains `<|end|>` shifts all later ones.
fn encode_phi3(text: &Text<'_>, turns: &[Turn]) -> Result<Encoded, String> {
    let turns = without_empty(alternating(turns)?)?;
    let turn = |(number, turn): (usize, &Turn)| {
        if number % 2 == 0 { phi3_question(&turn.value) } else { format!("{PHI3_ANSWER}{}{PHI3_END}", turn.value) }
    };
    let prompt = phi3_system() + &turns.iter().enumerate().map(turn).collect::<String>();
    let pieces: Vec<&str> = prompt.split_inclusive(PHI3_END).collect();
    let Some((system, said)) = pieces.split_first() else { return Err("the conversation is empty".into()) };
    let (pairs, []) = said.as_chunks::<2>() else {
        return Err("the questions and answers do not pair up".into());
    };
    let mut masking = text.conversation(&prompt)?;
    for (number, pair) in pairs.iter().enumerate() {
        let round = if number == 0 { format!("{system}{}", pair.concat()) } else { pair.concat() };
        let Some(question) = single_split(&round, &format!("{PHI3_END}{PHI3_ANSWER}")) else { break };
        masking.round(text.len(question)?, text.len(&round)?);
    }
    Ok(masking.finish(text, PAD))
}

/// The text before and with `separator` if the text has it exactly once.
fn single_split<'a>(text: &'a str, separator: &str) -> Option<&'a str> {
    let end = text.find(separator)? + separator.len();
    (!text[end..].contains(separator)).then(|| &text[..end])
}

fn mask(labels: &mut [i32], from: usize, to: usize) {
    let to = to.min(labels.len());
    if from < to {
        labels[from..to].fill(IGNORE);
    }
}

/// The turns from the user's first on, which must alternate with the model's.
fn alternating(turns: &[Turn]) -> Result<&[Turn], String> {
    // The reference skips a first turn that is not the user's.
    let turns = match turns {
        [first, rest @ ..] if first.from == "gpt" => rest,
        all => all,
    };
    if turns.is_empty() {
        return Err("the conversation is empty".into());
    }
    for (number, turn) in turns.iter().enumerate() {
        let from = if number % 2 == 0 { "human" } else { "gpt" };
        if turn.from != from {
            return Err(format!("turn {} is from `{}` where `{from}` is expected", number + 1, turn.from));
        }
    }
    Ok(turns)
}

fn without_empty(turns: &[Turn]) -> Result<&[Turn], String> {
    match turns.iter().position(|turn| turn.value.is_empty()) {
        Some(empty) => Err(format!("turn {} is empty", empty + 1)),
        None => Ok(turns),
    }
}

/// The whole conversation as text (the reference's `Conversation.get_prompt`).
fn phi2_text(turns: &[Turn]) -> Result<String, String> {
    let mut text = format!("{SYSTEM} ");
    for (number, turn) in alternating(turns)?.iter().enumerate() {
        let (role, end) = if number % 2 == 0 { ("USER", " ") } else { ("ASSISTANT", PHI2_END) };
        text += role;
        text += ":";
        if !turn.value.is_empty() {
            text = text + " " + &turn.value + end;
        }
    }
    Ok(text)
}
