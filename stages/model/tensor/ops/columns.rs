//! Some columns of a matrix: one product computed them for several purposes.

use crate::tensor::{Graph, Mat, host::gather as host};

/// The columns `start..start + width` of `x`. Keeps nothing.
///
/// # Panics
/// If `x` has fewer: a bug of the caller's.
pub fn columns(g: &Graph, x: &Mat, start: usize, width: usize) -> Mat {
    let whole = x.cols();
    assert!(start + width <= whole, "columns {start}..{} of {whole}", start + width);
    let y = g.output(x.rows(), width, host::columns(x.values(), whole, start, width), &[x]);
    let x = x.ghost();
    g.record(&y, move |dy, gradients| host::columns_gradient(&dy, whole, start, width, gradients.buffer(&x)));
    y
}
