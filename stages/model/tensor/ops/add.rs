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

/// `to += scale * from`.
pub fn accumulate(to: &mut [f32], from: &[f32], scale: f32) {
    host::accumulate(to, from, scale);
}
