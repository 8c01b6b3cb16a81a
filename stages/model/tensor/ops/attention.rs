//! Scaled dot-product attention (Vaswani et al. 2017, arXiv 1706.03762) with grouped queries (Ainslie et al. 2023,
//! arXiv 2305.13245).

use crate::tensor::{
    Graph, Mask, Mat, Segments, device,
    host::attention::{self as host, Heads, Inputs, Outputs},
};

/// `softmax(q k^T / sqrt(head_dim)) v` for every head of every sequence, `[rows, heads * head_dim]`.
///
/// `q` is `[rows, heads * head_dim]`, `k` and `v` are `[rows, kv_heads * head_dim]`, with the heads side by side in a
/// row. Saves inputs, output and one number per row and head; the backward pass recomputes the scores (Dao et al. 2022,
/// arXiv 2205.14135).
pub fn attention(g: &Graph, q: &Mat, k: &Mat, v: &Mat, heads: usize, segments: &Segments, mask: Mask) -> Mat {
    if let Some(out) = device::ops::attention(g, [q, k, v], heads, segments, mask) {
        return out;
    }
    let (dim, precision) = (q.cols() / heads, q.precision);
    let heads = Heads { query: heads, key: k.cols() / dim, dim };
    let (out, log_totals) =
        host::forward(Inputs { q: q.values(), k: k.values(), v: v.values(), heads, segments, mask, precision });
    let out = g.output(q.rows(), q.cols(), out, &[q, k, v]);
    let (q, k, v, segments, result) = (q.clone(), k.clone(), v.clone(), segments.clone(), out.clone());
    g.record(&out, move |d_out, gradients| {
        let inputs =
            Inputs { q: q.values(), k: k.values(), v: v.values(), heads, segments: &segments, mask, precision };
        let outputs = Outputs { out: result.values(), log_totals: &log_totals, d_out: &d_out };
        // Added afterwards, since two of the inputs may be the same matrix.
        let computed = host::input_gradients(inputs, outputs);
        for (mat, gradient) in [&q, &k, &v].into_iter().zip(computed) {
            gradients.give(&mat.ghost(), gradient);
        }
    });
    out
}
