//! A matrix made of rows of others: token embeddings and image features become one sequence.

use super::{Graph, Mat};

/// Row `i` of the result is row `picks[i].1` of `sources[picks[i].0]`. All sources have one width.
pub fn gather(g: &Graph, sources: &[&Mat], picks: Vec<(usize, usize)>) -> Mat {
    let width = sources.first().map_or(0, |source| source.cols());
    let mut y = Vec::with_capacity(picks.len() * width);
    for (source, row) in &picks {
        y.extend_from_slice(sources[*source].row(*row));
    }
    let y = g.output(picks.len(), width, y, sources);
    let sources: Vec<_> = sources.iter().map(|source| (source.ghost(), source.needs_grad)).collect();
    g.record(&y, move |dy, gradients| {
        for (index, (ghost, needs_grad)) in sources.iter().enumerate() {
            if !needs_grad {
                continue;
            }
            let to = gradients.buffer(ghost);
            // One row may be picked often: in order, one after the other.
            for ((_, row), from) in picks.iter().zip(dy.chunks(width)).filter(|((source, _), _)| *source == index) {
                to[row * width..(row + 1) * width].iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
        }
    });
    y
}
