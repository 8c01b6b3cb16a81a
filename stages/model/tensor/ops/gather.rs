//! A matrix made of parts of others: rows (token embeddings and image features become one sequence), or columns
//! (what one product computed for several purposes).

use rayon::prelude::*;

use crate::tensor::{Graph, Mat, Weight};

/// Row `i` of the result is row `picks[i].1` of `sources[picks[i].0]`. All sources have one width; frozen ones are
/// widened row by row.
pub fn gather(g: &Graph, sources: &[&Weight], picks: Vec<(usize, usize)>) -> Mat {
    let width = sources.first().map_or(0, |source| source.inputs());
    let mut y = vec![0.0; picks.len() * width];
    y.par_chunks_mut(width.max(1)).zip(&picks).with_min_len(64).for_each(|(to, (source, row))| {
        match sources[*source] {
            Weight::Dense(mat) => to.copy_from_slice(mat.row(*row)),
            Weight::Stored(stored) => stored.widen(*row, to),
        }
    });
    let dense = |weight: &&Weight| if let Weight::Dense(mat) = weight { Some(mat.clone()) } else { None };
    let sources: Vec<Option<Mat>> = sources.iter().map(dense).collect();
    let inputs: Vec<&Mat> = sources.iter().flatten().collect();
    let y = g.output(picks.len(), width, y, &inputs);
    let sources: Vec<_> = sources.iter().map(|mat| mat.as_ref().filter(|mat| mat.needs_grad).map(Mat::ghost)).collect();
    g.record(&y, move |dy, gradients| {
        for (index, ghost) in sources.iter().enumerate() {
            let Some(ghost) = ghost else { continue };
            let to = gradients.buffer(ghost);
            // One row may be picked often: in order, one after the other.
            for ((_, row), from) in picks.iter().zip(dy.chunks(width)).filter(|((source, _), _)| *source == index) {
                to[row * width..(row + 1) * width].iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    });
    y
}

/// Rows of a matrix of activations.
pub fn pick_rows(g: &Graph, x: &Mat, rows: impl IntoIterator<Item = usize>) -> Mat {
    gather(g, &[&Weight::Dense(x.clone())], rows.into_iter().map(|row| (0, row)).collect())
}

/// The columns `start..start + width` of `x`.
///
/// # Panics
/// If `x` has fewer: a bug of the caller's.
pub fn columns(g: &Graph, x: &Mat, start: usize, width: usize) -> Mat {
    let whole = x.cols();
    assert!(start + width <= whole, "columns {start}..{} of {whole}", start + width);
    let mut y = vec![0.0; x.rows() * width];
    y.par_chunks_mut(width.max(1)).zip(x.values().par_chunks(whole)).with_min_len(64).for_each(|(y, x)| {
        y.copy_from_slice(&x[start..start + width]);
    });
    let y = g.output(x.rows(), width, y, &[x]);
    let x = x.ghost();
    g.record(&y, move |dy, gradients| {
        let dx = gradients.buffer(&x).par_chunks_mut(whole);
        dx.zip(dy.par_chunks(width)).with_min_len(64).for_each(|(dx, dy)| {
            dx[start..start + width].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += dy);
        });
    });
    y
}
