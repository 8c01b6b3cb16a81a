//! Generation with a KV cache for a batch of prompts of different lengths: greedy or sampled, with stop tokens and a
//! callback for every token.

mod context;
mod prefix;
mod sampling;
mod stop;

use std::ops::ControlFlow;

use prefix::Prefilled;

use crate::{
    imp::Imp,
    layers::Pass,
    sample::Sample,
    tensor::{self, Mat},
};

pub use context::Context;
pub use sampling::Sampling;
pub use stop::StopStrings;

/// How tokens are chosen, and when an answer ends.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Maximum number of tokens of an answer.
    pub max_new_tokens: usize,
    /// Ids of tokens that end an answer and are not part of it.
    pub stop: Vec<u32>,
    /// How a token is chosen; greedy by default.
    pub sampling: Sampling,
}

/// The model's output for a prompt is not a number: nothing can be chosen from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the model's output for prompt {prompt} is not a number, after {tokens} token(s)")]
pub struct NotANumber {
    /// The index of the prompt.
    pub prompt: usize,
    /// Tokens of the answer so far.
    pub tokens: usize,
}

/// An answer being generated.
struct Answer {
    prompt: usize,
    tokens: Vec<u32>,
}

impl Imp {
    /// Generates an answer to each prompt, as token ids. Prompts of a batch are independent, but the order of summation
    /// in matrix products depends on the number of rows, so logits are equal only within rounding.
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn generate(
        &self,
        prompts: &[Sample<'_>],
        features: &Mat,
        options: &GenerateOptions,
    ) -> Result<Vec<Vec<u32>>, NotANumber> {
        self.stream(prompts, features, options, |_, _| ControlFlow::Continue(()))
    }

    /// Like [`Imp::generate`]. `on_token` is called after every token with the index of the prompt and the answer so
    /// far, and can end this answer, for example with [`StopStrings`].
    ///
    /// # Errors
    /// If a logit is not a number.
    pub fn stream(
        &self,
        prompts: &[Sample<'_>],
        features: &Mat,
        options: &GenerateOptions,
        mut on_token: impl FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>, NotANumber> {
        if prompts.is_empty() || options.max_new_tokens == 0 {
            return Ok(vec![Vec::new(); prompts.len()]);
        }
        let mut prefilled = self.prefill(prompts, features);
        self.answer(prompts, &mut prefilled, options, &mut on_token)
    }

    /// Generates an answer to each prompt that was prefilled. What was decoded stays in the cache, and its length is counted.
    fn answer(
        &self,
        prompts: &[Sample<'_>],
        prefilled: &mut Prefilled,
        options: &GenerateOptions,
        on_token: &mut dyn FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<u32>>, NotANumber> {
        let mut answers = vec![Vec::new(); prompts.len()];
        let repeats = self.llm.embedding().place().repeats();
        // An empty prompt has no hidden state to continue from.
        let filled = prefilled.lengths.iter().enumerate().filter(|(_, length)| **length > 0);
        let mut open: Vec<Answer> = filled.map(|(prompt, _)| Answer { prompt, tokens: Vec::new() }).collect();
        if open.is_empty() || options.max_new_tokens == 0 {
            return Ok(answers);
        }
        let mut values = self.llm.logits(&Pass::inference(), &prefilled.hidden).to_host().into_owned(); // [open, vocab]
        loop {
            let (vocab, mut still_open) = (values.len() / open.len(), Vec::new());
            for (mut answer, logits) in open.into_iter().zip(values.chunks(vocab)) {
                let Answer { prompt, tokens } = &mut answer;
                if logits.iter().any(|logit| logit.is_nan()) {
                    return Err(NotANumber { prompt: *prompt, tokens: tokens.len() });
                }
                let seen = prompts[*prompt].input_ids.iter().filter_map(|id| u32::try_from(*id).ok());
                let seen = seen.chain(tokens.iter().copied());
                let token = options.sampling.choose(logits, seen, *prompt, tokens.len());
                let mut ended = options.stop.contains(&token);
                if !ended {
                    tokens.push(token);
                    ended = on_token(*prompt, tokens).is_break() || tokens.len() == options.max_new_tokens;
                }
                if ended {
                    answers[*prompt] = std::mem::take(tokens);
                } else {
                    still_open.push(answer);
                }
            }
            if still_open.is_empty() {
                return Ok(answers);
            }
            open = still_open;
            values = repeats.run(|| self.next_logits(&open, prefilled));
        }
    }

    /// Decodes the newest token of each open answer. Returns logits `[open, vocab]`.
    fn next_logits(&self, open: &[Answer], prefilled: &mut Prefilled) -> Vec<f32> {
        let pass = Pass::inference();
        let newest = open.iter().map(|answer| (0, answer.tokens.last().map_or(0, |token| *token as usize))).collect();
        let embedded = tensor::gather(&pass.graph, &[self.llm.embedding()], newest);
        let which: Vec<usize> = open.iter().map(|answer| answer.prompt).collect();
        let positions: Vec<usize> = which.iter().map(|prompt| prefilled.lengths[*prompt]).collect();
        for prompt in &which {
            prefilled.lengths[*prompt] += 1;
        }
        let hidden = self.llm.decode(&embedded, &positions, &which, &mut prefilled.cache, None);
        self.llm.logits(&pass, &hidden).to_host().into_owned()
    }
}
