//! `y += x W^T` for a few rows, as generation has them: every weight is read once, so reading is all that counts.
//! `gemm` would pack the weights first.

use rayon::prelude::*;

use super::{Mat, Weight, access::Shared, math};

/// With more rows than this a packed product is faster.
pub(super) const FEW_ROWS: usize = 8;
/// Outputs that a thread computes at a time.
const OUTPUTS: usize = 32;

/// `y += x W^T`, `y` `[rows, out]`.
pub(super) fn few_rows(x: &Mat, weight: &Weight, y: &mut [f32]) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.outputs());
    let y = Shared::new(y);
    (0..outputs.div_ceil(OUTPUTS)).into_par_iter().for_each_init(Vec::new, |wide: &mut Vec<f32>, chunk| {
        let first = chunk * OUTPUTS;
        let count = OUTPUTS.min(outputs - first);
        let values = match weight.in_place() {
            Ok(values) => &values[first * inputs..(first + count) * inputs],
            Err(stored) => {
                wide.resize(count * inputs, 0.0);
                stored.widen(first, wide);
                wide
            }
        };
        for row in 0..rows {
            let x = x.row(row);
            add(
                y,
                row * outputs + first,
                values.chunks(inputs).map(|w| math::simd(|| math::sum(inputs, |i| w[i] * x[i]))),
            );
        }
    });
}

/// Adds to places that no other task writes to.
#[allow(unsafe_code)]
fn add(y: Shared, start: usize, values: impl ExactSizeIterator<Item = f32>) {
    // SAFETY: chunks of outputs are disjoint, rows are one after the other in one task, and nothing reads before all
    // tasks have ended.
    let y = unsafe { y.slice(start, values.len()) };
    y.iter_mut().zip(values).for_each(|(y, value)| *y += value);
}
