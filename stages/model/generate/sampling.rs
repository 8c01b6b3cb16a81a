//! Chooses the next token from logits, as in transformers' `generation/logits_process.py`: repetition penalty, then
//! temperature, then nucleus sampling.

use std::{borrow::Cow, collections::BTreeSet};

use crate::tensor::{self, mix};

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits before the softmax. 0 is greedy: always the most likely token.
    pub temperature: f32,
    /// Nucleus sampling draws from the smallest set of most likely tokens with at least this total probability
    /// (Holtzman et al. 2020, arXiv 1904.09751). 1 allows all tokens.
    pub top_p: f32,
    /// Divides the positive and multiplies the negative logits of tokens that occur in the prompt or the answer (Keskar
    /// et al. 2019, arXiv 1909.05858). 1 disables the penalty.
    pub repetition_penalty: f32,
    /// Seed of the draws. A draw depends only on the seed, the index of the prompt and the position in the answer.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }
}

impl Sampling {
    /// Chooses token `position` of the answer to prompt `prompt`. `seen` are the ids in the prompt and the answer.
    pub(super) fn choose(
        &self,
        logits: &[f32],
        seen: impl Iterator<Item = u32>,
        prompt: usize,
        position: usize,
    ) -> u32 {
        let logits = self.penalized(logits, seen);
        if self.temperature <= 0.0 {
            return tensor::argmax(&logits) as u32;
        }
        let id = (prompt as u64) << 32 | position as u64;
        // 53 bits, the precision of an f64.
        let draw = (mix(self.seed ^ mix(id)) >> 11) as f64 / (1_u64 << 53) as f64;
        self.draw(&logits, draw)
    }

    /// Applies the repetition penalty to the logits of `seen` tokens.
    fn penalized<'a>(&self, logits: &'a [f32], seen: impl Iterator<Item = u32>) -> Cow<'a, [f32]> {
        let mut logits = Cow::Borrowed(logits);
        if (self.repetition_penalty - 1.0).abs() > 0.0 {
            let logits = logits.to_mut();
            for token in seen.collect::<BTreeSet<u32>>() {
                let Some(logit) = logits.get_mut(token as usize) else { continue };
                *logit = if *logit < 0.0 { *logit * self.repetition_penalty } else { *logit / self.repetition_penalty };
            }
        }
        logits
    }

    /// The token at `draw`, in [0, 1), of the cumulative distribution of the nucleus.
    fn draw(&self, logits: &[f32], draw: f64) -> u32 {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: &f32| (f64::from(logit - largest) / f64::from(self.temperature)).exp();
        let mut tokens: Vec<(f64, u32)> = logits.iter().map(weight).zip(0..).collect();
        let total: f64 = tokens.iter().map(|(weight, _)| weight).sum();
        // Ties are ordered by id, so that the order is unique.
        tokens.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut kept = 0.0;
        let nucleus = tokens.iter().take_while(|(weight, _)| {
            let incomplete = kept < f64::from(self.top_p) * total;
            kept += weight;
            incomplete
        });
        // The most likely token is always kept.
        let count = nucleus.count().max(1);
        let nucleus = &tokens[..count.min(tokens.len())];
        let mut rest = draw * nucleus.iter().map(|(weight, _)| weight).sum::<f64>();
        for (weight, token) in nucleus {
            rest -= weight;
            if rest < 0.0 {
                return *token;
            }
        }
        nucleus.last().map_or(0, |(_, token)| *token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Probabilities 0.5, 0.3, 0.15, 0.05 of tokens 2, 0, 3, 1.
    fn logits() -> Vec<f32> {
        [0.3_f32, 0.05, 0.5, 0.15].map(f32::ln).to_vec()
    }

    fn shares(sampling: Sampling) -> [f64; 4] {
        let mut counts = [0.0; 4];
        for position in 0..20_000 {
            counts[sampling.choose(&logits(), std::iter::empty(), 3, position) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn assert_near(shares: [f64; 4], expected: [f64; 4]) {
        // Four standard deviations of the frequency in 20,000 draws are less than 0.015.
        let is_near = shares.iter().zip(expected).all(|(share, expected)| (share - expected).abs() < 0.015);
        assert!(is_near, "{shares:?} instead of {expected:?}");
    }

    #[test]
    fn draws_follow_the_distribution() {
        let plain = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_near(shares(plain), [0.3, 0.05, 0.5, 0.15]);
        // At temperature 1/2, probabilities are squared and normalized: 0.09, 0.0025, 0.25, 0.0225 of 0.365.
        assert_near(shares(Sampling { temperature: 0.5, ..plain }), [0.2466, 0.0068, 0.6849, 0.0616]);
        assert_near(shares(Sampling { temperature: 1e-3, ..plain }), [0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn the_nucleus_includes_the_token_that_reaches_top_p() {
        let sampling = |top_p| Sampling { temperature: 1.0, top_p, ..Sampling::default() };
        assert_near(shares(sampling(0.79)), [0.375, 0.0, 0.625, 0.0]);
        assert_near(shares(sampling(0.81)), [0.3158, 0.0, 0.5263, 0.1579]);
        assert_near(shares(sampling(0.0)), [0.0, 0.0, 1.0, 0.0]);
    }

    #[test]
    fn draws_depend_on_seed_and_prompt() {
        let tokens = |seed, prompt| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            (0..50).map(|position| sampling.choose(&logits(), std::iter::empty(), prompt, position)).collect::<Vec<_>>()
        };
        assert_eq!(tokens(7, 0), tokens(7, 0));
        assert_ne!(tokens(7, 0), tokens(8, 0));
        assert_ne!(tokens(7, 0), tokens(7, 1));
    }

    #[test]
    fn repetition_is_penalized_once_per_token_and_for_both_signs() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::default() };
        let (logits, seen) = ([3.0, 2.0, -1.0, 1.6], [0, 0, 2, 9]);
        assert_eq!(sampling.choose(&logits, seen.into_iter(), 0, 0), 1);
        assert_eq!(*sampling.penalized(&logits, seen.into_iter()), [1.5, 2.0, -2.0, 1.6]);
    }
}
