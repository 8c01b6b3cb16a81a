//! Collects rows of several matrices, such as token embeddings and image features, into one.

use crate::tensor::{
    Graph, Mat, Weight,
    device::{self, ops::Source, stored_as},
    host::gather as host,
};

/// Returns `[picks, width]`, whose row `i` is row `picks[i].1` of `sources[picks[i].0]`. All sources have the same
/// width; frozen ones are decoded row by row. Saves only the picks for the backward pass.
pub fn gather(g: &Graph, sources: &[&Weight], picks: Vec<(usize, usize)>) -> Mat {
    let width = sources.first().map_or(0, |source| source.inputs());
    let place = sources.first().map(|source| source.place()).unwrap_or_default();
    if let Some(device) = &place.device {
        let on_device =
            sources.iter().enumerate().map(|(index, source)| source.source(index, &picks)).collect::<Vec<Source>>();
        let kind = stored_as(place.precision);
        let y = device::ops::gather(g, device, kind, width, &on_device, picks);
        return Mat { precision: place.precision, ..y };
    }
    let values: Vec<_> = sources.iter().map(|source| source.host()).collect();
    let y = host::rows(&values, &picks, width);
    let dense: Vec<Option<&Mat>> = sources.iter().map(|source| source.dense()).collect();
    let inputs: Vec<&Mat> = dense.iter().copied().flatten().collect();
    let mut y = g.output(picks.len(), width, y, &inputs);
    y.precision = place.precision;
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

/// Returns `rows` of `x`, as [`gather`].
pub fn pick_rows(g: &Graph, x: &Mat, rows: impl IntoIterator<Item = usize>) -> Mat {
    gather(g, &[&Weight::Dense(x.clone())], rows.into_iter().map(|row| (0, row)).collect())
}

/// Concatenates the rows of `parts`, `[.., width]` each. A single part is returned without a copy. Saves nothing for
/// the backward pass.
///
/// # Panics
/// If a part has a different width, which is a bug in the caller.
pub fn concat(g: &Graph, width: usize, parts: &[&Mat]) -> Mat {
    assert!(parts.iter().all(|part| part.cols() == width), "parts of width {width}");
    if let [part] = parts {
        return (*part).clone();
    }
    if let Some(y) = device::ops::concat(g, width, parts) {
        return y;
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
