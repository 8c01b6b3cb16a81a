//! `y += x W^T` for few rows, as in generation. Bound by memory bandwidth, so each weight is read only once; `gemm`
//! would first pack the weights.

use rayon::prelude::*;

use super::{
    linear::{Shape, Values},
    math,
    round::round,
    shared::Shared,
};
use crate::precision::Precision;

/// With more rows than this, a packed product is faster.
pub(super) const FEW_ROWS: usize = 8;
/// Outputs per task.
const OUTPUTS: usize = 32;

/// `y += x W^T`, with `y` `[rows, outputs]` and `x` already in the shape's precision.
pub(super) fn few_rows(x: &[f32], weight: Values<'_>, shape: Shape, y: &mut [f32]) {
    let Shape { rows, inputs, outputs, precision } = shape;
    let y = Shared::new(y);
    // A row of a stored weight that is used once need not be decoded to memory.
    let once = match weight {
        Values::Stored(stored) if rows == 1 => stored.operand(x, precision),
        _ => None,
    };
    (0..outputs.div_ceil(OUTPUTS)).into_par_iter().for_each_init(Vec::new, |decoded: &mut Vec<f32>, chunk| {
        decoded.resize(inputs, 0.0);
        for output in chunk * OUTPUTS..outputs.min((chunk + 1) * OUTPUTS) {
            if let (Values::Stored(stored), Some(x)) = (weight, &once) {
                add(y, output, stored.dot(output, x));
                continue;
            }
            // One row of the weight at a time, which stays in a core's cache.
            let w = match weight {
                Values::Plain(values) if precision == Precision::F32 => &values[output * inputs..(output + 1) * inputs],
                Values::Plain(values) => {
                    decoded.copy_from_slice(&values[output * inputs..(output + 1) * inputs]);
                    round(decoded, precision);
                    &decoded[..]
                }
                Values::Stored(stored) => {
                    stored.widen(output, decoded);
                    round(decoded, precision);
                    &decoded[..]
                }
            };
            for row in 0..rows {
                let x = &x[row * inputs..(row + 1) * inputs];
                add(y, row * outputs + output, math::simd!(|| math::dot(w, x)));
            }
        }
    });
}

/// Adds to a value that no other task writes.
#[allow(unsafe_code)]
fn add(y: Shared, index: usize, value: f32) {
    // SAFETY: each output of each row is written by one task, and nothing reads before all tasks have ended.
    unsafe { y.slice(index, 1)[0] += value };
}
