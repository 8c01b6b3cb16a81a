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

/// All rows of `parts`, one part after the other; each has rows of `width` values. A single part is given back as it
/// is, without a copy. Keeps nothing.
///
/// # Panics
/// If a part has another width: a bug of the caller's.
pub fn concat(g: &Graph, width: usize, parts: &[&Mat]) -> Mat {
    assert!(parts.iter().all(|part| part.cols() == width), "all parts have rows of {width} values");
    if let [part] = parts {
        return (*part).clone();
    }
    let values: Vec<&[f32]> = parts.iter().map(|part| part.values()).collect();
    let rows = parts.iter().map(|part| part.rows()).sum();
    let y = g.output(rows, width, values.concat(), parts);
    let parts: Vec<_> = parts.iter().map(|part| (part.count(), part.needs_grad.then(|| part.ghost()))).collect();
    g.record(&y, move |dy, gradients| {
        let mut rest = &dy[..];
        for (count, part) in parts {
            let (own, others) = rest.split_at(count);
            if let Some(part) = part {
                gradients.add(&part, own, 1.0);
            }
            rest = others;
        }
    });
    y
}
