//! Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): saves only the input of a part of the network, and
//! recomputes its activations in the backward pass.

use crate::tensor::{Graph, Mat};

/// `f(x)`, of which only `x` is saved. `parameters` are the other trainable matrices that `f` uses. `f` must be
/// deterministic: its dropout must depend on a seed only.
pub fn recompute(g: &Graph, x: &Mat, parameters: Vec<Mat>, f: impl Fn(&Graph, &Mat) -> Mat + 'static) -> Mat {
    let mut y = f(&Graph::inference(), x);
    y.needs_grad = g.records() && (x.needs_grad || parameters.iter().any(Mat::needs_grad));
    let x = x.clone();
    if y.device_mat().is_some() {
        g.record_on_device(&y, move |dy, gradients| {
            let inner = Graph::recording();
            let y = f(&inner, &x);
            let mut computed = inner.backward_from_device(&y, dy);
            for mat in parameters.iter().chain([&x]).filter(|mat| mat.needs_grad).filter_map(Mat::device_mat) {
                if let Some(gradient) = computed.take_on_device(mat.id) {
                    gradients.give_on_device(&mat.ghost(), gradient);
                }
            }
        });
        return y;
    }
    g.record(&y, move |dy, gradients| {
        let inner = Graph::recording();
        let y = f(&inner, &x);
        let mut computed = inner.backward_from(&y, dy);
        for mat in parameters.iter().chain([&x]).filter(|mat| mat.needs_grad) {
            if let Some(gradient) = computed.take_on_host(&mat.ghost()) {
                gradients.give(&mat.ghost(), gradient);
            }
        }
    });
    y
}
