//! The speed of training: of each step for the metrics, of this process for the final figures.

use std::time::Instant;

use crate::contract::process_memory;

/// The work of one step.
pub(super) struct Work {
    /// From the request for its images to its end.
    pub(super) seconds: f64,
    /// Seconds that it waited for its images.
    pub(super) waited: f64,
    pub(super) examples: usize,
    /// Positions of the language model.
    pub(super) tokens: usize,
}

impl Work {
    /// Its figures in `metrics.jsonl`.
    pub(super) fn figures(&self) -> Vec<(&'static str, f64)> {
        let seconds = self.seconds.max(1e-9);
        let mut figures = vec![
            ("examples_per_second", self.examples as f64 / seconds),
            ("tokens_per_second", self.tokens as f64 / seconds),
            ("data_wait", self.waited),
        ];
        figures.extend(process_memory::resident().map(|bytes| ("memory", bytes as f64)));
        figures
    }
}

/// The work of this process so far.
pub(super) struct Speed {
    began: Instant,
    waited: f64,
    examples: usize,
    tokens: usize,
}

impl Speed {
    pub(super) fn new(began: Instant) -> Self {
        Self { began, waited: 0.0, examples: 0, tokens: 0 }
    }

    pub(super) fn add(&mut self, work: &Work) {
        self.waited += work.waited;
        self.examples += work.examples;
        self.tokens += work.tokens;
    }

    /// The final figures. A process that resumes after the last step has none.
    pub(super) fn figures(&self) -> Vec<(&'static str, f64)> {
        if self.examples == 0 {
            return Vec::new();
        }
        let seconds = self.began.elapsed().as_secs_f64();
        vec![
            ("examples_per_second", self.examples as f64 / seconds),
            ("tokens_per_second", self.tokens as f64 / seconds),
            ("data_wait", self.waited),
        ]
    }
}
