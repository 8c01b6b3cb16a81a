//! A factor for each column: `LayerScale` (Touvron et al. 2021, arXiv 2103.17239).

use crate::tensor::{Graph, Mat, device, host::pointwise as host};

/// Multiplies every row of `x` `[rows, width]` by `scale` `[1, width]`. Saves both for the backward pass.
///
/// # Panics
/// If the widths differ, which is a bug in the caller.
pub fn scale_columns(g: &Graph, x: &Mat, scale: &Mat) -> Mat {
    assert!(scale.rows() == 1 && x.cols() == scale.cols(), "one factor for each column");
    if let Some(y) = device::ops::scale_columns(g, x, scale) {
        return y;
    }
    let y = g.output(x.rows(), x.cols(), host::scale_repeated(x.values(), scale.values()), &[x, scale]);
    let (x, scale) = (x.clone(), scale.clone());
    g.record(&y, move |dy, gradients| {
        if x.needs_grad {
            gradients.give(&x.ghost(), host::scale_repeated(&dy, scale.values()));
        }
        if scale.needs_grad {
            host::scale_repeated_gradient(x.values(), &dy, gradients.buffer(&scale.ghost()));
        }
    });
    y
}
