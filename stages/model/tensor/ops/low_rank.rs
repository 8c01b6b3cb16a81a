//! The second product of a LoRA adapter, with B (Hu et al. 2021, arXiv 2106.09685).

use crate::tensor::{
    Graph, Mat, device,
    host::linear::{self as host, Shape},
};

/// `y += scale * low B^T` in place: clones of `y` must not be used afterwards. `y` is `[rows, out]`, `low`
/// `[rows, rank]`, `b` `[out, rank]`. Saves `low`.
pub fn add_low_rank(g: &Graph, mut y: Mat, low: &Mat, b: &Mat, scale: f32) -> Mat {
    if device::ops::add_low_rank(g, &mut y, low, b, scale).is_some() {
        return y;
    }
    let precision = b.precision;
    let shape = Shape { rows: low.rows(), inputs: low.cols(), outputs: b.rows(), precision };
    host::add_low_rank(low.values(), b.values(), scale, shape, y.values_mut());
    y.needs_grad |= g.records() && (low.needs_grad || b.needs_grad);
    let (low, b) = (low.clone(), b.clone());
    g.record_in_place(&y, move |dy, gradients| {
        if low.needs_grad {
            gradients.sum(&low.ghost(), |d_low| host::low_gradient(dy, b.values(), scale, shape, d_low));
        }
        if b.needs_grad {
            gradients.sum(&b.ghost(), |db| host::b_gradient(dy, low.values(), scale, shape, db));
        }
    });
    y
}
