//! Dropout (Srivastava et al. 2014, JMLR 15).

use std::sync::Arc;

use crate::tensor::{
    Graph, Mat, device,
    host::dropout::{self as host, Drop},
};

/// Sets values to zero with probability `rate` and scales the others by `1 / (1 - rate)`. The mask of row `i` depends
/// only on `seed` and the id `rows[i]`, not on other rows or the number of threads. Saves nothing: the backward pass
/// recomputes the mask.
///
/// # Panics
/// If there is not one id per row, which is a bug in the caller.
pub fn dropout(g: &Graph, x: &Mat, rate: f32, seed: u64, rows: &Arc<[u64]>) -> Mat {
    if rate <= 0.0 {
        return x.clone();
    }
    assert_eq!(x.rows(), rows.len(), "dropout requires one id per row");
    multiply(g, x, Drop::new(rate), seed, rows)
}

/// `x - dropout(x)` with the same arguments: what dropout takes away.
///
/// # Panics
/// As [`dropout`].
pub fn dropout_rest(g: &Graph, x: &Mat, rate: f32, seed: u64, rows: &Arc<[u64]>) -> Mat {
    assert_eq!(x.rows(), rows.len(), "dropout requires one id per row");
    multiply(g, x, Drop::new(rate).rest(), seed, rows)
}

fn multiply(g: &Graph, x: &Mat, drop: Drop, seed: u64, rows: &Arc<[u64]>) -> Mat {
    if x.device_mat().is_some() {
        let keys: Vec<u64> = rows.iter().map(|row| host::row_key(seed, *row)).collect();
        if let Some(y) = device::ops::dropout(g, x, drop, &keys) {
            return y;
        }
    }
    let y = host::dropped(x.values(), drop, seed, rows);
    let y = g.output(x.rows(), x.cols(), y, &[x]);
    let (x, rows) = (x.ghost(), Arc::clone(rows));
    g.record(&y, move |mut dy, gradients| {
        host::drop_values(&mut dy, drop, seed, &rows);
        gradients.give(&x, dy);
    });
    y
}
