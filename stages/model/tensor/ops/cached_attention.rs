//! Attention of new positions to a KV cache, for generation.

use crate::tensor::{
    KvCache, Mask, Mat, device,
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
    if q.device_mat().is_some() {
        let pieces: Vec<_> = positions
            .iter()
            .zip(caches)
            .map(|(position, cache)| cache.pieces(mask.visible(*position, position + 1)))
            .collect();
        if let Some(out) = device::ops::attend_cached(q, &pieces, heads, kv_heads) {
            return out;
        }
    }
    let heads = Heads { query: heads, key: kv_heads, dim: q.cols() / heads };
    let rows = positions.iter().zip(caches);
    let visible: Vec<Cached<'_>> =
        rows.map(|(position, cache)| cache.at(mask.visible(*position, position + 1))).collect();
    let out = Mat::from_host(q.rows(), q.cols(), host::cached(q.values(), &visible, heads, q.precision));
    Mat { precision: q.precision, ..out }
}
