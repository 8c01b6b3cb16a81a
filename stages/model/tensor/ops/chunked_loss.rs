//! A loss summed over chunks of rows, whose intermediate results are in memory for one chunk at a time.

use std::ops::Range;

use crate::tensor::{Graph, Mat, device::ops::ChunkedLoss, ops::accumulate};

/// The sum of `f`, `[1, 1]`, over chunks of `x` with at most `rows` rows each. `f` takes the range of rows and the
/// chunk, and returns `[1, 1]`. `parameters` are the other trainable matrices that `f` uses.
///
/// When recording, the backward pass of a chunk follows its forward pass immediately, so intermediate results of `f`
/// (logits over a large vocabulary) are freed before the next chunk. Saves only gradients.
pub fn sum_over_chunks(
    g: &Graph,
    x: &Mat,
    rows: usize,
    parameters: &[Mat],
    f: impl Fn(&Graph, Range<usize>, &Mat) -> Mat,
) -> Mat {
    let height = x.rows();
    let chunks = (0..height).step_by(rows.max(1)).map(|start| start..(start + rows.max(1)).min(height));
    let computed = chunks.map(|range| {
        let mut chunk = x.copy_rows(range.clone());
        chunk.needs_grad = g.records() && x.needs_grad;
        let graph = if g.records() { Graph::recording() } else { Graph::inference() };
        let y = f(&graph, range.clone(), &chunk);
        let gradients = y.needs_grad.then(|| graph.backward(&y));
        (range.start, chunk, y, gradients)
    });
    if let Some(mut sum) = ChunkedLoss::new(g, x, parameters) {
        computed.for_each(|(start, chunk, y, gradients)| sum.add(&y, &chunk, start, gradients));
        return sum.finish(g, x, parameters);
    }
    let width = x.cols();
    let mut sum = 0.0_f64;
    let mut dx = Mat::zeros(if g.records() { height } else { 0 }, width);
    let mut sums: Vec<(Mat, Mat)> = Vec::new();
    for (start, chunk, y, gradients) in computed {
        sum += f64::from(y.item());
        if let Some(mut gradients) = gradients {
            dx.write_rows(start, &gradients.take(&chunk), 0..chunk.rows());
            let taken = parameters.iter().map(|mat| gradients.take(mat));
            if sums.is_empty() {
                sums = parameters.iter().cloned().zip(taken).collect();
            } else {
                sums.iter_mut().zip(taken).for_each(|((_, sum), chunk)| accumulate(sum, &chunk));
            }
        }
    }
    let inputs: Vec<&Mat> = parameters.iter().chain([x]).collect();
    let y = g.output(1, 1, vec![sum as f32], &inputs);
    let x = x.needs_grad.then(|| x.ghost());
    g.record(&y, move |dy, gradients| {
        if let Some(x) = x {
            gradients.add(&x, dx.values(), dy[0]);
        }
        for (parameter, sum) in sums {
            gradients.add(&parameter.ghost(), sum.values(), dy[0]);
        }
    });
    y
}
