//! A matrix made of rows of others: token embeddings and image features become one sequence.

use crate::tensor::{Graph, Mat, Weight, host::gather as host};

/// Row `i` of the result is row `picks[i].1` of `sources[picks[i].0]`. All sources have one width; frozen ones are
/// widened row by row. Keeps the picks only.
pub fn gather(g: &Graph, sources: &[&Weight], picks: Vec<(usize, usize)>) -> Mat {
    let width = sources.first().map_or(0, |source| source.inputs());
    let values: Vec<_> = sources.iter().map(|source| source.host()).collect();
    let y = host::rows(&values, &picks, width);
    let dense: Vec<Option<&Mat>> = sources.iter().map(|source| source.dense()).collect();
    let inputs: Vec<&Mat> = dense.iter().copied().flatten().collect();
    let y = g.output(picks.len(), width, y, &inputs);
    let ghosts: Vec<_> = dense.iter().map(|mat| mat.filter(|mat| mat.needs_grad).map(Mat::ghost)).collect();
    g.record(&y, move |dy, gradients| {
        for (index, ghost) in ghosts.iter().enumerate() {
            if let Some(ghost) = ghost {
                host::rows_gradient(&picks, index, width, &dy, gradients.buffer(ghost));
            }
        }
    });
    y
}

/// Rows of a matrix of activations.
pub fn pick_rows(g: &Graph, x: &Mat, rows: impl IntoIterator<Item = usize>) -> Mat {
    gather(g, &[&Weight::Dense(x.clone())], rows.into_iter().map(|row| (0, row)).collect())
}
