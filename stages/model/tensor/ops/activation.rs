//! Pointwise nonlinearities with their gradients. Each keeps its input only.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::tensor::{Graph, Mat, host::math, ops::pointwise::accumulate};

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
    /// `x / (1 + e^-x)` (Qwen, Llama, Phi-3: on the gate of their MLP).
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

impl Activation {
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "loops over it vectorise only if it is inlined")]
    fn value(self, x: f32) -> f32 {
        match self {
            Self::GeluTanh => 0.5 * x * (1.0 + math::tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x))),
            Self::GeluErf => 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2)),
            Self::Silu => x * math::sigmoid(x),
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
            Self::Silu => {
                let s = math::sigmoid(x);
                s * (1.0 + x * (1.0 - s))
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
        Activation::Silu => apply(g, x, |x| Activation::Silu.value(x), |x| Activation::Silu.slope(x)),
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

/// `silu(gate) * up`, the middle of a gated MLP (Shazeer 2020).
///
/// # Panics
/// If the two have different shapes: a bug of the caller's.
pub fn silu_gate(g: &Graph, gate: &Mat, up: &Mat) -> Mat {
    assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "gate and up have one shape");
    let mut y = vec![0.0; gate.values().len()];
    let inputs = gate.values().par_chunks(CHUNK).zip(up.values().par_chunks(CHUNK));
    y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| {
        math::simd(|| {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = Activation::Silu.value(*gate) * up;
            }
        });
    });
    let y = g.output(gate.rows(), gate.cols(), y, &[gate, up]);
    let (gate, up) = (gate.clone(), up.clone());
    g.record(&y, move |mut dy, gradients| {
        if gate.needs_grad {
            let d_gate = gradients.buffer(&gate.ghost()).par_chunks_mut(CHUNK);
            let inputs = gate.values().par_chunks(CHUNK).zip(up.values().par_chunks(CHUNK));
            d_gate.zip(inputs).zip(dy.par_chunks(CHUNK)).for_each(|((d_gate, (gate, up)), dy)| {
                math::simd(|| {
                    for (((d_gate, gate), up), dy) in d_gate.iter_mut().zip(gate).zip(up).zip(dy) {
                        *d_gate += dy * up * Activation::Silu.slope(*gate);
                    }
                });
            });
        }
        if up.needs_grad {
            dy.par_chunks_mut(CHUNK).zip(gate.values().par_chunks(CHUNK)).for_each(|(dy, gate)| {
                math::simd(|| {
                    for (dy, gate) in dy.iter_mut().zip(gate) {
                        *dy *= Activation::Silu.value(*gate);
                    }
                });
            });
            accumulate(gradients.buffer(&up.ghost()), &dy, 1.0);
        }
    });
    y
}
