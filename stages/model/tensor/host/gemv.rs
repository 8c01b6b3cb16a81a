//! `y += x W^T` for a few rows, as generation has them: every weight is read once, so reading is all that counts.
//! `gemm` would pack the weights first.

use rayon::prelude::*;

use super::{math, shared::Shared};
use crate::tensor::{Mat, Weight};

/// With more rows than this a packed product is faster.
pub(in crate::tensor) const FEW_ROWS: usize = 8;
/// Outputs that a thread computes at a time.
const OUTPUTS: usize = 32;

/// `y += x W^T`, `y` `[rows, out]`.
pub(in crate::tensor) fn few_rows(x: &Mat, weight: &Weight, y: &mut [f32]) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.outputs());
    let y = Shared::new(y);
    (0..outputs.div_ceil(OUTPUTS)).into_par_iter().for_each_init(Vec::new, |wide: &mut Vec<f32>, chunk| {
        wide.resize(inputs, 0.0);
        for output in chunk * OUTPUTS..outputs.min((chunk + 1) * OUTPUTS) {
            // One row at a time, which stays in the innermost cache.
            let w = match weight.in_place() {
                Ok(values) => &values[output * inputs..(output + 1) * inputs],
                Err(stored) => {
                    stored.widen(output, wide);
                    &wide[..]
                }
            };
            for row in 0..rows {
                add(y, row * outputs + output, math::simd(|| math::dot(w, x.row(row))));
            }
        }
    });
}

/// Adds to a place that no other task writes to.
#[allow(unsafe_code)]
fn add(y: Shared, place: usize, value: f32) {
    // SAFETY: every output of every row belongs to one task, and nothing reads before all tasks have ended.
    unsafe { y.slice(place, 1)[0] += value };
}
