//! Conversations with a model: several turns on one KV cache. Each answer is that to the whole conversation, of which only what is
//! new is computed. Independent of who talks, how answers are shown, and where images come from.

mod telling;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use imp_model::{
    Context, GenerateOptions, IMAGE_TOKEN, Sample,
    tensor::{self, Graph, Mat},
};

use self::telling::Telling;
use crate::{
    StageError, place,
    speaker::Speaker,
    text::template::{Round, Template},
};

pub use imp_model::Sampling;

/// What tells images apart: a digest of their files.
type ImageId = blake3::Hash;

/// The content of an image's file.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Arc<[u8]>,
    id: ImageId,
}

impl Image {
    /// An image in one of the formats that [`crate::image`] decodes, which it is when it is first needed.
    pub fn new(bytes: Vec<u8>) -> Self {
        let id = blake3::hash(&bytes);
        Self { bytes: bytes.into(), id }
    }
}

/// What a user says.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// Images, which come before the text.
    pub images: Vec<Image>,
    /// The text.
    pub text: String,
}

/// A conversation up to a question that has no answer yet.
#[derive(Clone, Debug, Default)]
pub struct Dialogue {
    /// Replaces the system text of the model's template.
    pub system: Option<String>,
    /// Questions with their answers.
    pub past: Vec<(Question, String)>,
    /// The question to answer.
    pub asked: Question,
}

/// How an answer is made, and what ends it.
#[derive(Clone, Debug)]
pub struct Manner {
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts that end the answer and are no part of it, beside what ends the model's turns.
    pub stop: Vec<String>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The model ended it, or a text that ends answers came.
    Stop,
    /// It may have no more tokens.
    MaxTokens,
    /// The model reads no more positions.
    ContextFull,
    /// Who listens did not want more of it.
    Interrupted,
}

/// An answer, and what it took.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer, without white space around it.
    pub text: String,
    /// Its tokens.
    pub tokens: usize,
    /// Why it ended.
    pub ended: Ended,
    /// Positions of the conversation before it; an image has one for each of its patches.
    pub positions: usize,
    /// Those of them that were in the KV cache already.
    pub reused: usize,
    /// The time until its first token: encoding new images, reading new positions.
    pub reading: Duration,
    /// The time after that.
    pub writing: Duration,
    /// Tokens that were computed in that time. One that ends the answer counts, the first of the answer does not.
    pub written: usize,
}

/// Why there is no answer. The conversation can go on with another question.
#[derive(Debug, thiserror::Error)]
pub enum NoAnswer {
    /// It is too long for the model.
    #[error("the conversation takes {positions} positions, and the model reads {most}")]
    ContextFull {
        /// The positions of the conversation.
        positions: usize,
        /// What the model reads.
        most: usize,
    },
    /// An image can't be decoded.
    #[error("image {number} of the conversation: {message}")]
    Image {
        /// The number of the image, from 1.
        number: usize,
        /// Why.
        message: String,
    },
    /// A text would end its turn and begin another's.
    #[error("a text contains `{0}`, which stands between the turns of this model's conversations")]
    TurnToken(&'static str),
    /// The model was taught captions only.
    #[error("this model was trained on captions only (the template `plain`) and knows no conversations")]
    Plain,
    /// The tokenizer can't encode a text or decode a token.
    #[error("{0}")]
    Text(String),
    /// Whoever asked does not wait any more.
    #[error("the answer was interrupted")]
    Interrupted,
    /// Its output is no number.
    #[error("{0}")]
    NotANumber(#[from] imp_model::NotANumber),
    /// The GPU failed, or its memory is too small.
    #[error("{0}")]
    Device(StageError),
}

/// The tokens that ask for an answer, with the image of each [`IMAGE_TOKEN`].
pub(crate) struct Prompt {
    pub(crate) ids: Vec<i32>,
    pub(crate) images: Vec<Image>,
}

/// A conversation with a model. It remembers what the model has read last.
pub struct Conversation<'a> {
    speaker: &'a Speaker,
    context: Context,
    /// The tokens of which the context consists, and its images.
    read: Vec<i32>,
    seen: Vec<ImageId>,
    /// The features `[patches, hidden]` of the images in the last prompt.
    features: HashMap<ImageId, Mat>,
}

impl<'a> Conversation<'a> {
    /// A conversation in which nothing was said yet.
    pub fn new(speaker: &'a Speaker) -> Self {
        Self { speaker, context: Context::default(), read: Vec::new(), seen: Vec::new(), features: HashMap::new() }
    }

    /// The model.
    pub fn speaker(&self) -> &'a Speaker {
        self.speaker
    }

    /// Answers the last question of `dialogue`. If it begins like the one that was answered last, only the rest is computed; the answer
    /// is the same as without that, within rounding. `told` is called with each new part of the answer as soon as it is certain,
    /// and with empty parts while there is none; it can end the answer.
    ///
    /// # Errors
    /// If there is no answer. What the model has read stays usable.
    pub fn answer(
        &mut self,
        dialogue: &Dialogue,
        manner: &Manner,
        told: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply, NoAnswer> {
        let prompt = prompt(self.speaker, dialogue)?;
        let ends = self.speaker.template().turn_tokens().iter().map(ToString::to_string);
        let ends = ends.chain(manner.stop.iter().cloned()).collect();
        self.respond(&prompt, manner, ends, told)
    }

    /// Answers a prompt. `ends` are the texts that end the answer.
    pub(crate) fn respond(
        &mut self,
        prompt: &Prompt,
        manner: &Manner,
        ends: Vec<String>,
        told: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply, NoAnswer> {
        place::guarded(|| self.compute(prompt, manner, ends, told)).unwrap_or_else(|fault| {
            // Nothing is known of what the model has read.
            *self = Self::new(self.speaker);
            Err(NoAnswer::Device(fault))
        })
    }

    fn compute(
        &mut self,
        prompt: &Prompt,
        manner: &Manner,
        ends: Vec<String>,
        mut told: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply, NoAnswer> {
        let start = Instant::now();
        let (positions, most) = self.speaker.positions(&prompt.ids);
        if positions >= most {
            return Err(NoAnswer::ContextFull { positions, most });
        }
        let keep = self.keep(prompt);
        let reused = self.context.positions();
        let (rest, features) = (&prompt.ids[keep..], self.look_at(prompt, &mut told)?);
        let images: Vec<usize> = (0..image_tokens(rest)).collect();
        let sample = Sample { input_ids: rest, labels: &[], images: &images };
        let max_new_tokens = manner.max_tokens.min(most - positions);
        let stop = self.speaker.stop_ids().to_vec();
        let options = GenerateOptions { max_new_tokens, stop, sampling: manner.sampling };

        let mut telling = Telling::new(self.speaker.tokenizer(), ends);
        let (mut first, mut interrupted, mut failed) = (None, false, None);
        let answer = self.speaker.model().continue_from(&mut self.context, &sample, &features, &options, |answer| {
            let part = answer.last().map_or(Ok(""), |newest| {
                first.get_or_insert_with(Instant::now);
                telling.push(*newest)
            });
            match part {
                Ok(part) => interrupted = told(part).is_break(),
                Err(message) => failed = Some(message),
            }
            if interrupted || failed.is_some() || telling.has_ended() {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        self.remember(prompt, answer.as_deref().unwrap_or_default());
        let tokens = answer?.len();
        if let Some(message) = failed {
            return Err(NoAnswer::Text(message));
        }
        let _ = told(telling.finish().map_err(NoAnswer::Text)?);
        let end = Instant::now();
        let first = first.unwrap_or(end);
        let by_text = telling.has_ended();
        let ended = match () {
            () if by_text => Ended::Stop,
            () if interrupted => Ended::Interrupted,
            () if tokens < max_new_tokens => Ended::Stop,
            () if max_new_tokens < manner.max_tokens => Ended::ContextFull,
            () => Ended::MaxTokens,
        };
        // The model computes one token more where it ends the answer itself.
        let computed = tokens + usize::from(ended == Ended::Stop && !by_text);
        Ok(Reply {
            text: telling.into_text(),
            tokens,
            ended,
            positions,
            reused,
            reading: first - start,
            writing: end - first,
            written: computed.saturating_sub(1),
        })
    }

    /// Forgets what `prompt` does not begin with. Returns the number of its tokens that stay read, which leaves at least one.
    fn keep(&mut self, prompt: &Prompt) -> usize {
        let mut images = self.seen.iter().zip(&prompt.images).map(|(seen, image)| *seen == image.id);
        let same = |(read, id): &(&i32, &i32)| read == id && (**id != IMAGE_TOKEN || images.next() == Some(true));
        let most = prompt.ids.len().saturating_sub(1);
        let count = self.read.iter().zip(&prompt.ids).take(most).take_while(same).count();
        self.read.truncate(count);
        self.seen.truncate(image_tokens(&self.read));
        self.context.truncate(self.speaker.positions(&self.read).0);
        count
    }

    /// The features of the images in `prompt` that are not read yet, `[images * patches, hidden]`. Each is encoded once.
    fn look_at(&mut self, prompt: &Prompt, told: &mut impl FnMut(&str) -> ControlFlow<()>) -> Result<Mat, NoAnswer> {
        self.features.retain(|id, _| prompt.images.iter().any(|image| image.id == *id));
        let new = prompt.images.iter().enumerate().skip(self.seen.len());
        for (number, image) in new.clone() {
            if !self.features.contains_key(&image.id) {
                if told("").is_break() {
                    return Err(NoAnswer::Interrupted);
                }
                let unreadable = |message| NoAnswer::Image { number: number + 1, message };
                let pixels = self.speaker.pixels(&image.bytes).map_err(unreadable)?;
                self.features.insert(image.id, self.speaker.encode(&pixels));
            }
        }
        let parts: Vec<&Mat> = new.filter_map(|(_, image)| self.features.get(&image.id)).collect();
        if parts.is_empty() {
            return Ok(Mat::zeros(0, self.speaker.feature_width()));
        }
        Ok(tensor::concat(&Graph::inference(), self.speaker.feature_width(), &parts))
    }

    /// Notes which tokens the context has: of the prompt, and of the answer those that something followed.
    fn remember(&mut self, prompt: &Prompt, answer: &[u32]) {
        let mut all = prompt.ids.clone();
        all.extend(answer.iter().map(|id| *id as i32));
        // An image of which only a part was read is read again.
        let has = self.context.positions();
        let mut positions = 0;
        let is_whole = |id: &&i32| {
            positions += self.speaker.positions(&[**id]).0;
            positions <= has
        };
        let count = all.iter().take_while(is_whole).count();
        all.truncate(count);
        self.context.truncate(self.speaker.positions(&all).0);
        self.seen = prompt.images.iter().take(image_tokens(&all)).map(|image| image.id).collect();
        self.read = all;
    }
}

/// Refuses texts that would end their turn and begin another's.
pub(crate) fn refuse_turns<'a>(template: Template, texts: impl IntoIterator<Item = &'a str>) -> Result<(), NoAnswer> {
    let found = |text: &str| template.turn_tokens().iter().find(|token| text.contains(**token));
    texts.into_iter().find_map(found).map_or(Ok(()), |token| Err(NoAnswer::TurnToken(token)))
}

/// The tokens of a dialogue, as in training.
fn prompt(speaker: &Speaker, dialogue: &Dialogue) -> Result<Prompt, NoAnswer> {
    let template = speaker.template();
    if template == Template::Plain {
        return Err(NoAnswer::Plain);
    }
    let past = dialogue.past.iter().map(|(question, answer)| (question, Some(answer.as_str())));
    let rounds: Vec<(&Question, Option<&str>)> = past.chain([(&dialogue.asked, None)]).collect();
    let texts = rounds.iter().flat_map(|(question, answer)| [Some(question.text.as_str()), *answer]);
    refuse_turns(template, texts.chain([dialogue.system.as_deref()]).flatten())?;
    let images = rounds.iter().flat_map(|(question, _)| question.images.iter().cloned()).collect();
    let rounds: Vec<Round<'_>> = rounds
        .iter()
        .map(|(question, answer)| Round { images: question.images.len(), question: &question.text, answer: *answer })
        .collect();
    let ids = speaker.ids_of_parts(&template.dialogue(dialogue.system.as_deref(), &rounds));
    Ok(Prompt { ids: ids.map_err(|error| NoAnswer::Text(error.to_string()))?, images })
}

fn image_tokens(ids: &[i32]) -> usize {
    ids.iter().filter(|id| **id == IMAGE_TOKEN).count()
}
