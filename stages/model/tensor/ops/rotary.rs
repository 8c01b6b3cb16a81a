//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in NeoX's layout: dimension `i` is rotated with
//! `i + dims / 2`.

use std::sync::Arc;

use crate::tensor::{Graph, Mat, host::rotary as host};

/// The first `dims` dimensions of every head are rotated by `position * theta^(-2i / dims)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Dimensions that are rotated, an even number.
    pub dims: usize,
    /// The base of the frequencies.
    pub theta: f64,
}

impl Rotary {
    /// The rotations of rows at `positions`, for all layers.
    pub fn at(self, positions: &[usize]) -> Rotation {
        let half = self.dims / 2;
        // The reference computes frequencies and angles in f32: so must these, or long positions differ.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (self.theta as f32).powf((2 * i) as f32 / self.dims as f32)).collect();
        let angles =
            positions.iter().flat_map(|position| frequencies.iter().map(move |frequency| *position as f32 * frequency));
        Rotation { half, table: angles.map(|angle| (angle.cos(), angle.sin())).collect() }
    }
}

/// cos and sin for each row of a matrix and each rotated pair of dimensions: `[rows, half]`.
#[derive(Clone, Debug)]
pub struct Rotation {
    half: usize,
    table: Arc<[(f32, f32)]>,
}

/// Rotates every head of `x` `[rows, heads * head_dim]`, in the place of `x`: no clone of `x` may be used after this.
/// Keeps the rotation only.
///
/// # Panics
/// If the rotation is for another number of rows: a bug of the caller's.
pub fn rotate(g: &Graph, mut x: Mat, head_dim: usize, rotation: &Rotation) -> Mat {
    assert_eq!(rotation.table.len(), x.rows() * rotation.half, "a rotation for every row");
    let (Rotation { half, table }, width) = (rotation.clone(), x.cols());
    host::turn(x.values_mut(), width, head_dim, &table, half, 1.0);
    // The transpose of a rotation is the rotation back.
    g.record_in_place(&x, move |dx, _| host::turn(dx, width, head_dim, &table, half, -1.0));
    x
}
