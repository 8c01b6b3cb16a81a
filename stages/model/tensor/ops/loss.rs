//! Softmax cross-entropy.

use crate::tensor::{Graph, Mat, device, host::loss as host};

/// The label of positions without loss (PyTorch's `ignore_index`).
pub const IGNORE: i32 = -100;

/// The sum over rows of `-log softmax(logits)[target]` divided by `count`, `[1, 1]`, with `logits` `[rows, classes]`.
/// `count` is the number of labelled positions of the whole batch, of which these rows may be a part. Saves `logits`
/// and one number per row.
pub fn cross_entropy(g: &Graph, logits: &Mat, targets: Vec<u32>, count: usize) -> Mat {
    if let Some(loss) = device::ops::cross_entropy(g, logits, &targets, count) {
        return loss;
    }
    let (width, scale) = (logits.cols(), 1.0 / count.max(1) as f32);
    let (loss, log_totals) = host::forward(logits.values(), width, &targets);
    let loss = g.output(1, 1, vec![(loss * f64::from(scale)) as f32], &[logits]);
    let logits = logits.clone();
    g.record(&loss, move |dy, gradients| {
        let dx = gradients.buffer(&logits.ghost());
        host::input_gradient(logits.values(), width, &targets, &log_totals, scale * dy[0], dx);
    });
    loss
}
