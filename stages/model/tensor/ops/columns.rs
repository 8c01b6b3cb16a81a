//! Columns of a matrix, such as q, k and v of a stacked projection.

use crate::tensor::{Graph, Mat, device, host::gather as host};

/// Copies the columns `start..start + width` of `x`: `[rows, width]`. Saves nothing for the backward pass.
///
/// # Panics
/// If `x` has fewer columns, which is a bug in the caller.
pub fn columns(g: &Graph, x: &Mat, start: usize, width: usize) -> Mat {
    let whole = x.cols();
    assert!(start + width <= whole, "columns {start}..{} of {whole}", start + width);
    if let Some(y) = device::ops::columns(g, x, start, width) {
        return y;
    }
    let y = g.output(x.rows(), width, host::columns(x.values(), whole, start, width), &[x]);
    let x = x.ghost();
    g.record(&y, move |dy, gradients| host::columns_gradient(&dy, whole, start, width, gradients.buffer(&x)));
    y
}
