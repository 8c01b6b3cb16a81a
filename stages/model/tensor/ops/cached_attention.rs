//! Attention of new positions to those that a cache holds, for generation.

use crate::tensor::{
    KvCache, Mask, Mat,
    host::attention::{self as host, Cached, Heads},
};

/// Row `i` of `q` `[rows, heads * head_dim]`, which stands at `positions[i]` of its sequence, looks at what `mask` lets
/// it see of `caches[i]`. For inference: records nothing.
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
    let seen: Vec<Cached<'_>> = rows.map(|(position, cache)| cache.seen(mask.seen(*position, position + 1))).collect();
    Mat::from_host(q.rows(), q.cols(), host::cached(q.values(), &seen, heads))
}
