//! The norms that DoRA gives to the rows of a weight (Liu et al. 2024, arXiv 2402.09353).

use std::sync::Arc;

use crate::tensor::{Graph, Mat, host::pointwise as host};

/// `y[i, j] = x[i, j] * m[j] / norms[j]`, `[rows, out]`, of `x` `[rows, out]`, the output of a weight whose rows have these norms, and
/// `m` `[1, out]`, those that they get. The norms are constant for the backward pass. Saves `x`. On the host only.
///
/// # Panics
/// If the widths differ, which is a bug in the caller.
pub fn set_norms(g: &Graph, x: &Mat, m: &Mat, norms: Arc<[f32]>) -> Mat {
    assert!(x.cols() == m.cols() && m.cols() == norms.len(), "one magnitude and one norm for each column");
    let factors: Vec<f32> = m.values().iter().zip(&*norms).map(|(m, norm)| m / norm).collect();
    let mut y = x.values().to_vec();
    host::scale_columns(&mut y, &factors);
    let y = g.output(x.rows(), x.cols(), y, &[x, m]);
    let (dx, dm) = (x.needs_grad.then(|| x.ghost()), m.needs_grad.then(|| (m.ghost(), x.clone())));
    g.record(&y, move |mut dy, gradients| {
        if let Some((dm, x)) = dm {
            host::magnitude_gradient(&dy, x.values(), &norms, gradients.buffer(&dm));
        }
        if let Some(dx) = dx {
            host::scale_columns(&mut dy, &factors);
            gradients.add(&dx, &dy, 1.0);
        }
    });
    y
}
