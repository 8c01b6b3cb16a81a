//! Learning-rate schedules. Reference: transformers' `optimization.py`.

use serde::{Deserialize, Serialize};

/// The learning rate after the warmup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Decays to zero along half a cosine.
    #[default]
    Cosine,
    /// Decays linearly to zero.
    Linear,
    /// Stays constant.
    Constant,
}

impl Schedule {
    /// The factor on the learning rate in step `step` (from 0) of `total`. Rises linearly from zero during the first
    /// `warmup` steps, so the learning rate of step 0 is 0.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        let progress = (step - warmup) as f64 / total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Cosine => (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0),
            Self::Linear => (1.0 - progress).max(0.0),
            Self::Constant => 1.0,
        }
    }
}

/// The number of warmup steps: `ratio` of `total` steps, rounded up as in transformers.
pub fn warmup_steps(ratio: f64, total: usize) -> usize {
    (ratio * total as f64).ceil() as usize
}
