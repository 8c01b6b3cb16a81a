//! Rotary position embedding, row by row.

use rayon::prelude::*;

/// Rotates dimensions `i` and `i + half` of every head in place. `table` has the (cos, sin) of each row's `half`
/// angles; `direction` is 1, or -1 for the inverse rotation.
pub(in crate::tensor) fn rotate(
    values: &mut [f32],
    width: usize,
    head_dim: usize,
    table: &[[f32; 2]],
    half: usize,
    direction: f32,
) {
    if half == 0 {
        return;
    }
    values.par_chunks_mut(width).zip(table.par_chunks(half)).with_min_len(16).for_each(|(row, table)| {
        for head in row.chunks_mut(head_dim) {
            let (low, high) = head.split_at_mut(half);
            for ((a, b), [cos, sin]) in low.iter_mut().zip(high).zip(table) {
                (*a, *b) = (*a * cos - direction * *b * sin, *b * cos + direction * *a * sin);
            }
        }
    });
}
