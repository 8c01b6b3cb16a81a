//! How the turns of a conversation become one text, and which of its tokens are learned. Equal to Imp's `preprocess_*` token for
//! token (`text/fixtures`). Independent of files and images.

use imp_model::tensor::IGNORE;

use super::{
    super::{
        conversation::Turn,
        tokenizer::{IMAGE_TEXT, TextTokenizer},
    },
    CHATML_END, PAD, PHI2_END, PHI3_ANSWER, PHI3_END, SYSTEM, Template, UNKNOWN, chatml_question, chatml_system,
    phi3_question, phi3_system,
};

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
        let found = turn.value.matches(IMAGE_TEXT).count();
        // As the reference does. Of several images, one token too many says that an image is missing.
        let count = if images > 1 { found } else { found.min(images) };
        if count > 0 {
            let words = strip(&turn.value.replace(IMAGE_TEXT, "")).to_string();
            turn.value = strip(&format!("{}{words}", format!("{IMAGE_TEXT}\n").repeat(count))).to_string();
        }
        turn
    };
    turns.iter().map(moved).collect()
}

/// Python's `str.strip`, which counts four separators as white space that Rust's `trim` keeps.
pub(super) fn strip(text: &str) -> &str {
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
    for (number, round) in prompt.split(PHI2_END).take_while(|round| !round.is_empty()).enumerate() {
        let Some(question) = single_split(round, " ASSISTANT: ") else { break };
        // After `</s>` some tokenizers of Llamas don't put the space before a word that they put before a text.
        let len = |part: &str| match number {
            0 => text.len(part),
            _ => text.len(&format!("{PHI2_END}{part}")).map(|tokens| tokens.saturating_sub(1)),
        };
        // The question's encoding ends with the space after "ASSISTANT:", which in the round belongs to the answer; the
        // round has its `</s>`.
        masking.round(len(question)?.saturating_sub(1), len(round)? + 1);
    }
    Ok(masking.finish(text, pad))
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
