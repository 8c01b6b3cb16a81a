//! Activation functions and their derivatives. The formulas are in [`crate::tensor::Activation`].

use rayon::prelude::*;

use super::{fresh::filled, math, pointwise::CHUNK};

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// An activation function. One type each, so that loops are compiled for each function and vectorize.
pub(in crate::tensor) trait Function {
    fn value(x: f32) -> f32;
    fn derivative(x: f32) -> f32;
}

pub(in crate::tensor) struct GeluTanh;
pub(in crate::tensor) struct GeluErf;
pub(in crate::tensor) struct Silu;
pub(in crate::tensor) struct QuickGelu;

#[allow(clippy::inline_always, reason = "loops over it vectorize only if it is inlined")]
impl Function for GeluTanh {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x)))
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let t = math::tanh(SQRT_2_OVER_PI * (x + 0.044_715 * x * x * x));
        0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044_715 * x * x)
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Function for GeluErf {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let cumulative = 0.5 * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2));
        cumulative + x * math::exp(-0.5 * x * x) * 0.398_942_3
    }
}

#[allow(clippy::inline_always, reason = "as above")]
impl Function for Silu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * math::sigmoid(x)
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let s = math::sigmoid(x);
        s * (1.0 + x * (1.0 - s))
    }
}

/// The steepness of the sigmoid in CLIP's approximation of GELU.
const STEEPNESS: f32 = 1.702;

#[allow(clippy::inline_always, reason = "as above")]
impl Function for QuickGelu {
    #[inline(always)]
    fn value(x: f32) -> f32 {
        x * math::sigmoid(STEEPNESS * x)
    }

    #[inline(always)]
    fn derivative(x: f32) -> f32 {
        let s = math::sigmoid(STEEPNESS * x);
        s * (1.0 + STEEPNESS * x * (1.0 - s))
    }
}

/// `F(x)`.
pub(in crate::tensor) fn forward<F: Function>(x: &[f32]) -> Vec<f32> {
    filled(x.len(), CHUNK, |start, y| {
        math::simd!(|| {
            for (y, x) in y.iter_mut().zip(&x[start..]) {
                *y = F::value(*x);
            }
        });
    })
}

/// `dy *= F'(x)`.
pub(in crate::tensor) fn times_derivative<F: Function>(x: &[f32], dy: &mut [f32]) {
    dy.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(dy, x)| {
        math::simd!(|| {
            for (dy, x) in dy.iter_mut().zip(x) {
                *dy *= F::derivative(*x);
            }
        });
    });
}

/// `silu(gate) * factor`: with `up` the output, with `dy` the gradient of `up`.
pub(in crate::tensor) fn silu_gate(gate: &[f32], factor: &[f32]) -> Vec<f32> {
    filled(gate.len(), CHUNK, |start, y| {
        math::simd!(|| {
            for (y, (gate, factor)) in y.iter_mut().zip(gate[start..].iter().zip(&factor[start..])) {
                *y = Silu::value(*gate) * factor;
            }
        });
    })
}

/// The gradient of `gate`: `dy *= up * silu'(gate)`.
pub(in crate::tensor) fn gate_gradient(gate: &[f32], up: &[f32], dy: &mut [f32]) {
    let inputs = gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK));
    dy.par_chunks_mut(CHUNK).zip(inputs).for_each(|(dy, (gate, up))| {
        math::simd!(|| {
            for (dy, (gate, up)) in dy.iter_mut().zip(gate.iter().zip(up)) {
                *dy = *dy * up * Silu::derivative(*gate);
            }
        });
    });
}
