//! Sums of matrices.

use crate::tensor::{Graph, Mat, device, host::pointwise as host};

/// `y += x` in place: clones of `y` must not be used afterwards. Saves nothing for the backward pass.
pub fn add(g: &Graph, mut y: Mat, x: &Mat) -> Mat {
    if device::ops::add(g, &mut y, x).is_some() {
        return y;
    }
    host::accumulate(y.values_mut(), x.values(), 1.0);
    y.needs_grad |= g.records() && x.needs_grad;
    if x.needs_grad {
        let x = x.ghost();
        // The gradient of y is unchanged and passed to the operation that computed y.
        g.record_in_place(&y, move |dy, gradients| gradients.add(&x, dy, 1.0));
    }
    y
}

/// Adds `rows` `[period, width]` to every `period` rows of `y` `[n * period, width]` in place: clones of `y` must not
/// be used afterwards. Saves nothing for the backward pass.
///
/// # Panics
/// If the widths differ or the rows of `y` are not a multiple of `period`, which is a bug in the caller.
pub fn add_rows(g: &Graph, mut y: Mat, rows: &Mat) -> Mat {
    assert!(y.cols() == rows.cols() && y.rows().is_multiple_of(rows.rows()), "rows of one width, in whole periods");
    if device::ops::add_rows(g, &mut y, rows).is_some() {
        return y;
    }
    host::add_repeated(y.values_mut(), rows.values());
    y.needs_grad |= g.records() && rows.needs_grad;
    if rows.needs_grad {
        let rows = rows.ghost();
        g.record_in_place(&y, move |dy, gradients| host::add_repeated_gradient(dy, gradients.buffer(&rows)));
    }
    y
}

/// `to += from`, to accumulate gradients of several passes. Not recorded on a tape.
///
/// # Panics
/// If the shapes differ, which is a bug in the caller.
pub fn accumulate(to: &mut Mat, from: &Mat) {
    assert_eq!((to.rows(), to.cols()), (from.rows(), from.cols()), "matrices of one shape");
    if let (Some(to), Some(from)) = (to.device_mat_mut(), from.device_mat()) {
        return device::ops::accumulate(to, from, 1.0);
    }
    host::accumulate(to.values_mut(), from.values(), 1.0);
}
