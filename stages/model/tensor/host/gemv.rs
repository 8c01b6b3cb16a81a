//! `y += x W^T` for a few rows, as generation has them: every weight is read once, so reading is all that counts.
//! `gemm` would pack the weights first.

use rayon::prelude::*;

use super::{
    linear::{Shape, Values},
    math,
    shared::Shared,
};

/// With more rows than this a packed product is faster.
pub(super) const FEW_ROWS: usize = 8;
/// Outputs that a thread computes at a time.
const OUTPUTS: usize = 32;

/// `y += x W^T`, `y` `[rows, out]`.
pub(super) fn few_rows(x: &[f32], weight: Values<'_>, shape: Shape, y: &mut [f32]) {
    let Shape { rows, inputs, outputs } = shape;
    let y = Shared::new(y);
    (0..outputs.div_ceil(OUTPUTS)).into_par_iter().for_each_init(Vec::new, |wide: &mut Vec<f32>, chunk| {
        wide.resize(inputs, 0.0);
        for output in chunk * OUTPUTS..outputs.min((chunk + 1) * OUTPUTS) {
            // One row at a time, which stays in the innermost cache.
            let w = match weight {
                Values::Plain(values) => &values[output * inputs..(output + 1) * inputs],
                Values::Stored(stored) => {
                    stored.widen(output, wide);
                    &wide[..]
                }
            };
            for row in 0..rows {
                let x = &x[row * inputs..(row + 1) * inputs];
                add(y, row * outputs + output, math::simd(|| math::dot(w, x)));
            }
        }
    });
}

/// Adds to a value that no other task writes to.
#[allow(unsafe_code)]
fn add(y: Shared, index: usize, value: f32) {
    // SAFETY: every output of every row belongs to one task, and nothing reads before all tasks have ended.
    unsafe { y.slice(index, 1)[0] += value };
}
