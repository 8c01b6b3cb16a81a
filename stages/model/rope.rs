//! The frequencies of rotary position embeddings that are scaled for longer contexts. Formulas: transformers'
//! `modeling_rope_utils.py`, in f32 where it has tensors. Independent of how configurations are written.

use std::f64::consts::PI;

/// How rotary frequencies are scaled: `rope_scaling` of a `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// All frequencies are divided by `factor` (Chen et al. 2023, arXiv 2306.15595).
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// The base grows with sequences that are longer than the model's positions.
    Dynamic {
        /// How many times as long they may be.
        factor: f64,
    },
    /// Low frequencies are divided by `factor`, high ones stay, and between them there is a ramp (Llama 3.1).
    Llama3 {
        /// The divisor.
        factor: f64,
        /// Turns within `original` positions below which a frequency is low.
        low: f64,
        /// Turns within `original` positions above which a frequency is high.
        high: f64,
        /// Positions of the first training.
        original: usize,
    },
    /// The same with a ramp over dimensions, and a factor on queries and keys (Peng et al. 2023, arXiv 2309.00071).
    Yarn {
        /// The divisor.
        factor: f64,
        /// The factor on queries and keys.
        magnitude: f64,
        /// Turns within `original` positions above which a frequency stays.
        fast: f64,
        /// Turns within `original` positions below which a frequency is divided by all of `factor`.
        slow: f64,
        /// Whether the ramp begins and ends at whole dimensions.
        truncate: bool,
        /// Positions of the first training.
        original: usize,
    },
    /// Each frequency has its own divisor: one in sequences of at most `original` positions, another in longer ones (Ding et al.
    /// 2024, arXiv 2402.13753).
    LongRope {
        /// Divisors in sequences of at most `original` positions.
        short: Vec<f32>,
        /// Divisors in longer sequences.
        long: Vec<f32>,
        /// The factor on queries and keys.
        magnitude: f64,
        /// Positions of the first training.
        original: usize,
    },
}

/// Rotary position embeddings of a model.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rope<'a> {
    /// Number of rotated dimensions, which is even.
    pub(crate) dims: usize,
    /// Base of the frequencies.
    pub(crate) theta: f64,
    /// Positions of the model.
    pub(crate) positions: usize,
    pub(crate) scaling: Option<&'a RopeScaling>,
}

impl RopeScaling {
    /// The name in `config.json`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear { .. } => "linear",
            Self::Dynamic { .. } => "dynamic",
            Self::Llama3 { .. } => "llama3",
            Self::Yarn { .. } => "yarn",
            Self::LongRope { .. } => "longrope",
        }
    }

    /// The factor on queries and keys.
    pub fn magnitude(&self) -> f64 {
        match self {
            Self::Yarn { magnitude, .. } | Self::LongRope { magnitude, .. } => *magnitude,
            Self::Linear { .. } | Self::Dynamic { .. } | Self::Llama3 { .. } => 1.0,
        }
    }
}

impl Rope<'_> {
    /// The longest sequence with the frequencies of shorter ones, if others have other frequencies.
    pub(crate) fn fixed_until(&self) -> Option<usize> {
        match self.scaling? {
            RopeScaling::LongRope { short, long, original, .. } => (short != long).then_some(*original),
            RopeScaling::Dynamic { .. } => Some(self.positions),
            RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } => None,
        }
    }

    /// The angle by which each pair of dimensions turns from one position to the next, in a sequence of `length` positions.
    pub(crate) fn frequencies(&self, length: usize) -> Vec<f32> {
        match self.scaling {
            None => self.plain(self.theta),
            Some(RopeScaling::Linear { factor }) => {
                self.plain(self.theta).into_iter().map(|frequency| frequency / *factor as f32).collect()
            }
            Some(RopeScaling::Dynamic { factor }) => self.plain(self.grown(*factor, length)),
            Some(RopeScaling::Llama3 { factor, low, high, original }) => {
                let scaled = |frequency| llama3(frequency, *factor, *low, *high, *original as f64);
                self.plain(self.theta).into_iter().map(scaled).collect()
            }
            Some(RopeScaling::Yarn { factor, fast, slow, truncate, original, .. }) => {
                let (low, high) = self.ramp(*fast, *slow, *original as f64, *truncate);
                self.plain(self.theta)
                    .into_iter()
                    .enumerate()
                    .map(|(pair, frequency)| {
                        let divided = ((pair as f32 - low) / (high - low)).clamp(0.0, 1.0);
                        frequency / *factor as f32 * divided + frequency * (1.0 - divided)
                    })
                    .collect()
            }
            Some(RopeScaling::LongRope { short, long, original, .. }) => {
                let divisors = if length > *original { long } else { short };
                let exponents = (0..self.dims / 2).map(|pair| (2 * pair) as f32 / self.dims as f32);
                exponents
                    .zip(divisors)
                    .map(|(exponent, divisor)| 1.0 / (divisor * (self.theta as f32).powf(exponent)))
                    .collect()
            }
        }
    }

    /// In f32 as in the reference: at large positions, f64 would give noticeably different angles.
    fn plain(&self, theta: f64) -> Vec<f32> {
        let power = |pair: usize| (theta as f32).powf((2 * pair) as f32 / self.dims as f32);
        (0..self.dims / 2).map(|pair| 1.0 / power(pair)).collect()
    }

    /// The base for a sequence of `length` positions.
    fn grown(&self, factor: f64, length: usize) -> f64 {
        let (dims, positions) = (self.dims as f64, self.positions as f64);
        let times = factor * length.max(self.positions) as f64 / positions - (factor - 1.0);
        self.theta * times.powf(dims / (dims - 2.0))
    }

    /// The pairs of dimensions at which the ramp begins and ends: those that turn `fast` and `slow` times within `original` positions.
    fn ramp(&self, fast: f64, slow: f64, original: f64, truncate: bool) -> (f32, f32) {
        let dims = self.dims as f64;
        let pair = |turns: f64| dims * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (low, high) = (pair(fast), pair(slow));
        let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        // As in the reference, against a division by zero.
        let high = if (high - low).abs() > 0.0 { high } else { high + 0.001 };
        (low as f32, high as f32)
    }
}

fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = 2.0 * PI as f32 / frequency;
    if wavelength > (original / low) as f32 {
        return frequency / factor as f32;
    }
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
}
