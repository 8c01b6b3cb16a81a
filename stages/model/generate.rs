//! Greedy generation with a key-value cache, for a batch of prompts of unequal length.

use crate::{
    imp::{Imp, Sample},
    layers::Pass,
    tensor::{self, Mat},
};

/// When to stop.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// At most so many tokens.
    pub max_new_tokens: usize,
    /// Tokens that end an answer; they are not part of it.
    pub stop: Vec<u32>,
}

impl Imp {
    /// The answers to `prompts`, as token ids: at each step the most likely token. The result does not depend
    /// on which prompts share a batch.
    pub fn generate(&self, prompts: &[Sample<'_>], features: &Mat, options: &GenerateOptions) -> Vec<Vec<u32>> {
        let pass = Pass::inference();
        let mut answers = vec![Vec::new(); prompts.len()];
        if prompts.is_empty() || options.max_new_tokens == 0 {
            return answers;
        }
        let spliced = self.splice(&pass, prompts, features);
        let (hidden, mut cache) = self.llm.prefill(&spliced.embedded, &spliced.segments);
        let mut lengths: Vec<usize> = spliced.segments.iter().map(|range| range.len()).collect();
        let last = spliced.segments.iter().map(|range| (0, range.end.saturating_sub(1))).collect();
        let mut hidden = tensor::gather(&pass.graph, &[&hidden], last); // [prompts, hidden]
        let mut open: Vec<usize> = (0..prompts.len()).collect();
        loop {
            let logits = self.llm.logits(&pass, &hidden);
            let next: Vec<u32> = (0..open.len()).map(|row| tensor::argmax(logits.row(row)) as u32).collect();
            let mut tokens = Vec::new();
            let mut still_open = Vec::new();
            for (prompt, token) in open.into_iter().zip(next) {
                if options.stop.contains(&token) {
                    continue;
                }
                answers[prompt].push(token);
                if answers[prompt].len() < options.max_new_tokens {
                    tokens.push((0, token as usize));
                    still_open.push(prompt);
                }
            }
            open = still_open;
            if open.is_empty() {
                return answers;
            }
            let embedded = tensor::gather(&pass.graph, &[&self.llm.embedding], tokens);
            let positions: Vec<usize> = open.iter().map(|prompt| lengths[*prompt]).collect();
            hidden = self.llm.decode(&embedded, &positions, &open, &mut cache);
            for prompt in &open {
                lengths[*prompt] += 1;
            }
        }
    }
}
