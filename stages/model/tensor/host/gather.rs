//! Copies rows and columns.

use rayon::prelude::*;

use super::{fresh::filled, linear::Values};

/// Rows per task.
const ROWS: usize = 64;

/// Returns rows of `width` values, of which row `i` is row `picks[i].1` of `sources[picks[i].0]`.
pub(in crate::tensor) fn rows(sources: &[Values<'_>], picks: &[(usize, usize)], width: usize) -> Vec<f32> {
    filled(picks.len() * width, ROWS * width, |start, rows| {
        // No part has no values.
        for (to, (source, row)) in rows.chunks_mut(width).zip(&picks[start / width..]) {
            match sources[*source] {
                Values::Plain(values) => to.copy_from_slice(&values[row * width..(row + 1) * width]),
                Values::Stored(stored) => stored.widen(*row, to),
            }
        }
    })
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
    filled(x.len() / whole * width, ROWS * width, |first, rows| {
        for (y, x) in rows.chunks_mut(width).zip(x[first / width * whole..].chunks(whole)) {
            y.copy_from_slice(&x[start..start + width]);
        }
    })
}

/// Adds the gradient of the input of [`columns`] to `dx`.
pub(in crate::tensor) fn columns_gradient(dy: &[f32], whole: usize, start: usize, width: usize, dx: &mut [f32]) {
    dx.par_chunks_mut(whole).zip(dy.par_chunks(width)).with_min_len(ROWS).for_each(|(dx, dy)| {
        dx[start..start + width].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
    });
}
