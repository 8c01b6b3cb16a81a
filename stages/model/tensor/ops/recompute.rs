//! Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): a part of the network keeps its input only, and is
//! computed again in the backward pass.

use crate::tensor::{Graph, Mat};

/// `f(x)`. `parameters` are the other matrices that train in it. `f` must give the same on every call: what it drops
/// must follow from a seed.
pub fn recompute(g: &Graph, x: &Mat, parameters: Vec<Mat>, f: impl Fn(&Graph, &Mat) -> Mat + 'static) -> Mat {
    let mut y = f(&Graph::inference(), x);
    y.needs_grad = g.records() && (x.needs_grad || parameters.iter().any(Mat::needs_grad));
    let x = x.clone();
    g.record(&y, move |dy, gradients| {
        let inner = Graph::recording();
        let y = f(&inner, &x);
        let mut found = inner.backward_from(&y, dy);
        for mat in parameters.iter().chain([&x]).filter(|mat| mat.needs_grad) {
            gradients.add(&mat.ghost(), found.take(mat).values(), 1.0);
        }
    });
    y
}
