//! Generation with a key-value cache, for a batch of prompts of unequal length: greedy or sampled, with stop tokens,
//! and with a callback that sees every token as it comes.

mod prefix;
mod sampling;
mod stop;

use std::ops::ControlFlow;

use prefix::Beginning;

use crate::{
    imp::Imp,
    layers::Pass,
    splice::Sample,
    tensor::{self, Mat},
};

pub use sampling::Sampling;
pub use stop::StopStrings;

/// How answers are made, and when they end.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// At most this many tokens.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; they are not part of it.
    pub stop: Vec<u32>,
    /// How a token is chosen; greedily by default.
    pub sampling: Sampling,
}

/// An answer that is being made.
struct Answer {
    prompt: usize,
    tokens: Vec<u32>,
    /// Positions that the language model has seen of this sequence.
    length: usize,
}

impl Imp {
    /// The answers to `prompts`, as token ids. Prompts that share a batch don't see each other, but products over more
    /// rows add up in a different order: logits are the same within rounding only.
    pub fn generate(&self, prompts: &[Sample<'_>], features: &Mat, options: &GenerateOptions) -> Vec<Vec<u32>> {
        self.stream(prompts, features, options, |_, _| ControlFlow::Continue(()))
    }

    /// As [`Imp::generate`]. `on_token` is called after every token with the index of the prompt and its answer so far, and
    /// may end this answer, for example through [`StopStrings`].
    pub fn stream(
        &self,
        prompts: &[Sample<'_>],
        features: &Mat,
        options: &GenerateOptions,
        mut on_token: impl FnMut(usize, &[u32]) -> ControlFlow<()>,
    ) -> Vec<Vec<u32>> {
        let mut answers = vec![Vec::new(); prompts.len()];
        if prompts.is_empty() || options.max_new_tokens == 0 {
            return answers;
        }
        let pass = Pass::inference();
        let Beginning { mut hidden, mut cache, lengths } = self.begin(prompts, features);
        // An empty prompt has no last position to continue from.
        let lengths = lengths.into_iter().enumerate().filter(|(_, length)| *length > 0);
        let mut open: Vec<Answer> =
            lengths.map(|(prompt, length)| Answer { prompt, tokens: Vec::new(), length }).collect();
        if open.is_empty() {
            return answers;
        }
        loop {
            let logits = self.llm.logits(&pass, &hidden); // [open, vocab]
            let (values, mut still_open) = (logits.to_host(), Vec::new());
            for (mut answer, logits) in open.into_iter().zip(values.chunks(logits.cols())) {
                let Answer { prompt, tokens, .. } = &mut answer;
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
                return answers;
            }
            open = still_open;
            hidden = self.next_hidden(&mut open, &mut cache);
        }
    }

    /// The language model on the newest token of each answer: `[open, hidden]`.
    fn next_hidden(&self, open: &mut [Answer], cache: &mut crate::language::Cache) -> Mat {
        let newest = open.iter().map(|answer| (0, answer.tokens.last().map_or(0, |token| *token as usize))).collect();
        let embedded = tensor::gather(&Pass::inference().graph, &[self.llm.embedding()], newest);
        let positions: Vec<usize> = open.iter().map(|answer| answer.length).collect();
        let which: Vec<usize> = open.iter().map(|answer| answer.prompt).collect();
        for answer in open {
            answer.length += 1;
        }
        self.llm.decode(&embedded, &positions, &which, cache)
    }
}
