//! Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762), with key heads that groups of query heads
//! share (Ainslie et al. 2023, arXiv 2305.13245).

use crate::tensor::{
    Graph, Mask, Mat, Segments,
    host::attention::{self as host, Heads, Inputs, Outputs},
};

/// `softmax(q k^T / sqrt(head_dim)) v` for every head of every sequence.
///
/// `q` `[rows, heads * head_dim]`, `k` and `v` `[rows, kv_heads * head_dim]`; heads lie side by side in a row. Keeps
/// its inputs, its output and one number for each row and head; the backward pass computes the scores again (Dao et al.
/// 2022, arXiv 2205.14135).
pub fn attention(g: &Graph, q: &Mat, k: &Mat, v: &Mat, heads: usize, segments: &Segments, mask: Mask) -> Mat {
    let dim = q.cols() / heads;
    let heads = Heads { query: heads, key: k.cols() / dim, dim };
    let (out, log_totals) =
        host::forward(Inputs { q: q.values(), k: k.values(), v: v.values(), heads, segments, mask });
    let out = g.output(q.rows(), q.cols(), out, &[q, k, v]);
    let (q, k, v, segments, result) = (q.clone(), k.clone(), v.clone(), segments.clone(), out.clone());
    g.record(&out, move |d_out, gradients| {
        let inputs = Inputs { q: q.values(), k: k.values(), v: v.values(), heads, segments: &segments, mask };
        let outputs = Outputs { out: result.values(), log_totals: &log_totals, d_out: &d_out };
        // Added afterwards, as two of the inputs may be one and the same matrix.
        let found = host::input_gradients(inputs, outputs);
        for (mat, gradient) in [&q, &k, &v].into_iter().zip(found) {
            gradients.add(&mat.ghost(), &gradient, 1.0);
        }
    });
    out
}
