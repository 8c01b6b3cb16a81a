//! The norms that DoRA gives to the rows of a weight (Liu et al. 2024, arXiv 2402.09353).

use crate::tensor::{Graph, Mat, device, host::dora as host};

/// The norms of the rows of `W + scale * B A`, `[1, out]`, without that matrix:
///
/// `|w + scale * b A|^2 = |w|^2 + scale * b . (2 A w + scale * A A^T b)`, where `w` and `b` are rows of W and B.
///
/// `squares` `[1, out]` has `|w|^2`, `wa` `[rank, out]` is `A W^T`, and `ba` `[out, rank]` is `B A A^T`; all in f32, also on a device.
/// Constant for the backward pass: not recorded.
pub fn row_norms(squares: &Mat, b: &Mat, wa: &Mat, ba: &Mat, scale: f32) -> Mat {
    if let Some(norms) = device::ops::row_norms(squares, b, wa, ba, scale) {
        return norms;
    }
    let norms = host::row_norms(squares.values(), b.values(), wa.values(), ba.values(), scale);
    Mat { precision: squares.precision, ..Mat::from_host(1, squares.cols(), norms) }
}

/// `y[i, j] = x[i, j] * m[j] / norms[j]`, `[rows, out]`, of `x` `[rows, out]`, the output of a weight whose rows have the norms `norms`
/// `[1, out]`, and `m` `[1, out]`, those that they get. `norms` is constant for the backward pass. Saves `x`.
///
/// # Panics
/// If the widths differ, which is a bug in the caller.
pub fn set_norms(g: &Graph, x: &Mat, m: &Mat, norms: &Mat) -> Mat {
    assert!(x.cols() == m.cols() && m.cols() == norms.cols(), "one magnitude and one norm for each column");
    if let Some(y) = device::ops::set_norms(g, x, m, norms) {
        return y;
    }
    let mut y = x.values().to_vec();
    host::set_norms(&mut y, m.values(), norms.values());
    let y = g.output(x.rows(), x.cols(), y, &[x, m]);
    let (dx, dm) = (x.needs_grad.then(|| x.ghost()), m.needs_grad.then(|| (m.ghost(), x.clone())));
    let (m, norms) = (m.clone(), norms.clone());
    g.record(&y, move |mut dy, gradients| {
        if let Some((dm, x)) = dm {
            host::magnitude_gradient(&dy, x.values(), norms.values(), gradients.buffer(&dm));
        }
        if let Some(dx) = dx {
            host::set_norms(&mut dy, m.values(), norms.values());
            gradients.give(&dx, dy);
        }
    });
    y
}
