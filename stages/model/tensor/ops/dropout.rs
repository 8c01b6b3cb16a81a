//! Dropout (Srivastava et al. 2014).

use std::sync::Arc;

use crate::tensor::{Graph, Mat, host::dropout as host};

/// Sets a share `rate` of the values to zero and scales the others by `1 / (1 - rate)`. What is dropped of row `i`
/// follows from `seed` and `rows[i]` alone: not from its neighbours, nor from the number of threads. Keeps nothing: the
/// backward pass draws the mask again.
///
/// # Panics
/// If there is not one name a row: a bug of the caller's.
pub fn dropout(g: &Graph, x: &Mat, rate: f32, seed: u64, rows: &Arc<[u64]>) -> Mat {
    if rate <= 0.0 {
        return x.clone();
    }
    assert_eq!(x.rows(), rows.len(), "dropout needs a name for every row");
    let mut y = x.values().to_vec();
    host::drop_values(&mut y, rate, seed, rows);
    let y = g.output(x.rows(), x.cols(), y, &[x]);
    let (x, rows) = (x.ghost(), Arc::clone(rows));
    g.record(&y, move |mut dy, gradients| {
        host::drop_values(&mut dy, rate, seed, &rows);
        gradients.add(&x, &dy, 1.0);
    });
    y
}
