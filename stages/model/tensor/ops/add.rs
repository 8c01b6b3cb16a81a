//! Sums of matrices.

use crate::tensor::{Graph, Mat, host::pointwise as host};

/// `y + x`, in the place of `y`: no clone of `y` may be used after this. Keeps nothing.
pub fn add(g: &Graph, mut y: Mat, x: &Mat) -> Mat {
    host::accumulate(y.values_mut(), x.values(), 1.0);
    y.needs_grad |= g.records() && x.needs_grad;
    if x.needs_grad {
        let x = x.ghost();
        // The gradient of y continues to whatever made y.
        g.record_in_place(&y, move |dy, gradients| gradients.add(&x, dy, 1.0));
    }
    y
}

/// `y` with `rows` `[period, width]` added to its first `period` rows, to the next ones, and so on, in the place of `y`:
/// no clone of `y` may be used after this. Keeps nothing.
///
/// # Panics
/// If `y` is not whole periods of this width: a bug of the caller's.
pub fn add_rows(g: &Graph, mut y: Mat, rows: &Mat) -> Mat {
    assert!(y.cols() == rows.cols() && y.rows().is_multiple_of(rows.rows()), "as many rows as fit into whole periods");
    host::add_repeated(y.values_mut(), rows.values());
    y.needs_grad |= g.records() && rows.needs_grad;
    if rows.needs_grad {
        let rows = rows.ghost();
        g.record_in_place(&y, move |dy, gradients| host::add_repeated_gradient(dy, gradients.buffer(&rows)));
    }
    y
}

/// `to += from`, for gradients of several passes. Records nothing.
///
/// # Panics
/// If the two have different shapes: a bug of the caller's.
pub fn accumulate(to: &mut Mat, from: &Mat) {
    assert_eq!((to.rows(), to.cols()), (from.rows(), from.cols()), "sums are over matrices of one shape");
    host::accumulate(to.values_mut(), from.values(), 1.0);
}
