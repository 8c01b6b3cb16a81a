//! Uniform noise on rows, as NEFTune adds it to embeddings (Jain et al. 2023, arXiv 2310.05914).

use super::add::add;
use crate::tensor::{Graph, Mat, host::dropout as host};

/// Adds to row `i` of `y` `[rows, width]`, in place, numbers that are uniform in `-bounds[i]..bounds[i]` and depend only on `seed`, the id
/// `rows[i]` and the column: not on other rows, the number of threads or the device. Clones of `y` must not be used afterwards.
/// Saves nothing.
///
/// # Panics
/// If there is not one id and one bound per row, which is a bug in the caller.
pub fn add_noise(g: &Graph, y: Mat, bounds: &[f32], seed: u64, rows: &[u64]) -> Mat {
    assert!(y.rows() == rows.len() && rows.len() == bounds.len(), "noise requires one id and one bound per row");
    let mut noise = vec![0.0; y.count()];
    host::noise(&mut noise, bounds, seed, rows);
    let noise = Mat::from_host(y.rows(), y.cols(), noise).to(&y.place());
    add(g, y, &noise)
}
