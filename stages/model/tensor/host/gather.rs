//! Copies rows and columns.

use rayon::prelude::*;

use super::linear::Values;

/// Returns rows of `width` values, of which row `i` is row `picks[i].1` of `sources[picks[i].0]`.
pub(in crate::tensor) fn rows(sources: &[Values<'_>], picks: &[(usize, usize)], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; picks.len() * width];
    y.par_chunks_mut(width.max(1)).zip(picks).with_min_len(64).for_each(|(to, (source, row))| match sources[*source] {
        Values::Plain(values) => to.copy_from_slice(&values[row * width..(row + 1) * width]),
        Values::Stored(stored) => stored.widen(*row, to),
    });
    y
}

/// Adds the gradient of source `index` of [`rows`] to `to`.
pub(in crate::tensor) fn rows_gradient(
    picks: &[(usize, usize)],
    index: usize,
    width: usize,
    dy: &[f32],
    to: &mut [f32],
) {
    // Sequential, since several picks may add to the same row.
    for ((_, row), from) in picks.iter().zip(dy.chunks(width)).filter(|((source, _), _)| *source == index) {
        to[row * width..(row + 1) * width].iter_mut().zip(from).for_each(|(to, from)| *to += from);
    }
}

/// Copies the columns `start..start + width` of rows of `whole` values.
pub(in crate::tensor) fn columns(x: &[f32], whole: usize, start: usize, width: usize) -> Vec<f32> {
    let mut y = vec![0.0; x.len() / whole * width];
    y.par_chunks_mut(width.max(1)).zip(x.par_chunks(whole)).with_min_len(64).for_each(|(y, x)| {
        y.copy_from_slice(&x[start..start + width]);
    });
    y
}

/// Adds the gradient of the input of [`columns`] to `dx`.
pub(in crate::tensor) fn columns_gradient(dy: &[f32], whole: usize, start: usize, width: usize, dx: &mut [f32]) {
    dx.par_chunks_mut(whole).zip(dy.par_chunks(width)).with_min_len(64).for_each(|(dx, dy)| {
        dx[start..start + width].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
    });
}
