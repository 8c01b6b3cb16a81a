//! Attention of new positions to a KV cache, for generation.

use crate::tensor::{
    KvCache, Mask, Mat,
    host::attention::{self as host, Cached, Heads},
};

/// Attention of each row of `q` `[rows, heads * head_dim]`: row `i`, at `positions[i]` of its sequence, attends to the
/// positions in `caches[i]` that `mask` allows. For inference only: not recorded on a tape.
pub fn attend_cached(
    q: &Mat,
    positions: &[usize],
    caches: &[&KvCache],
    heads: usize,
    kv_heads: usize,
    mask: Mask,
) -> Mat {
    let heads = Heads { query: heads, key: kv_heads, dim: q.cols() / heads };
    let rows = positions.iter().zip(caches);
    let visible: Vec<Cached<'_>> =
        rows.map(|(position, cache)| cache.at(mask.visible(*position, position + 1))).collect();
    Mat::from_host(q.rows(), q.cols(), host::cached(q.values(), &visible, heads))
}
