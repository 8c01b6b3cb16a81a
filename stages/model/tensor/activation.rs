//! Pointwise nonlinearities with their gradients. Each keeps its input only.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Graph, Mat, math};

/// Values that one thread works on at a time.
pub(super) const CHUNK: usize = 8192;

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// The nonlinearities of the models, by the names in their `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (Phi-2, SigLIP).
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    /// `0.5 x (1 + erf(x / sqrt 2))` (the projector).
    #[serde(rename = "gelu")]
    GeluErf,
}

impl Activation {
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "loops over it vectorise only if it is inlined")]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::GeluTanh => 0.5 * x * (1.0 + math::tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x))),
            Self::GeluErf => 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        }
    }

    #[inline(always)]
    #[allow(clippy::inline_always, reason = "as above")]
    fn slope(self, x: f32) -> f32 {
        match self {
            Self::GeluTanh => {
                let t = math::tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
            }
            Self::GeluErf => {
                let cumulative = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
                cumulative + x * math::exp(-0.5 * x * x) * 0.398_942_3
            }
        }
    }
}

/// Applies `kind` to every value.
pub fn activation(g: &Graph, x: &Mat, kind: Activation) -> Mat {
    // The choice is made outside the loops, so that each of them is a straight line.
    match kind {
        Activation::GeluTanh => apply(g, x, |x| Activation::GeluTanh.value(x), |x| Activation::GeluTanh.slope(x)),
        Activation::GeluErf => apply(g, x, |x| Activation::GeluErf.value(x), |x| Activation::GeluErf.slope(x)),
    }
}

fn apply(g: &Graph, x: &Mat, value: impl Fn(f32) -> f32 + Sync, slope: impl Fn(f32) -> f32 + Sync + 'static) -> Mat {
    let mut y = vec![0.0; x.values().len()];
    y.par_chunks_mut(CHUNK).zip(x.values().par_chunks(CHUNK)).for_each(|(y, x)| {
        math::simd(|| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = value(*x);
            }
        });
    });
    let y = g.output(x.rows(), x.cols(), y, &[x]);
    let x = x.clone();
    g.record(&y, move |dy, gradients| {
        let dx = gradients.buffer(&x.ghost());
        dx.par_chunks_mut(CHUNK).zip(x.values().par_chunks(CHUNK)).zip(dy.par_chunks(CHUNK)).for_each(
            |((dx, x), dy)| {
                math::simd(|| {
                    for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                        *dx += dy * slope(*x);
                    }
                });
            },
        );
    });
    y
}
