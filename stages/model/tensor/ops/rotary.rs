//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in GPT-NeoX's layout: dimension `i` is paired with
//! `i + dims / 2`.

use std::sync::{Arc, OnceLock};

use crate::tensor::{
    Graph, Mat,
    device::{self, Buffer, Device},
    host::rotary as host,
};

/// Rotary position embedding: pair `i` of the first `dims` dimensions of each head is rotated by the angle
/// `position * theta^(-2i / dims)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rotary {
    /// Number of rotated dimensions, which is even.
    pub dims: usize,
    /// Base of the frequencies.
    pub theta: f64,
}

impl Rotary {
    /// The rotations of rows at `positions`, which are the same in all layers.
    pub fn at(self, positions: &[usize]) -> Rotation {
        let half = self.dims / 2;
        // In f32 as in the reference: at large positions, f64 would give noticeably different angles.
        let frequencies: Vec<f32> =
            (0..half).map(|i| 1.0 / (self.theta as f32).powf((2 * i) as f32 / self.dims as f32)).collect();
        let angles =
            positions.iter().flat_map(|position| frequencies.iter().map(move |frequency| *position as f32 * frequency));
        Rotation { half, table: angles.map(|angle| [angle.cos(), angle.sin()]).collect(), uploaded: Arc::default() }
    }
}

/// The (cos, sin) of each row and pair of dimensions: `[rows, half]`.
#[derive(Clone, Debug)]
pub struct Rotation {
    half: usize,
    table: Arc<[[f32; 2]]>,
    /// The table on the device of the first matrix that was rotated there.
    uploaded: Arc<OnceLock<Arc<Buffer>>>,
}

impl Rotation {
    /// The table on `device`.
    fn on(&self, device: &Device) -> Arc<Buffer> {
        let upload = || Arc::new(Buffer::of(device, &self.table));
        let first = self.uploaded.get_or_init(upload);
        if first.device() == device { Arc::clone(first) } else { upload() }
    }
}

/// Rotates every head of `x` `[rows, heads * head_dim]` in place: clones of `x` must not be used afterwards. Saves only
/// the rotation.
///
/// # Panics
/// If the rotation has a different number of rows, which is a bug in the caller.
pub fn rotate(g: &Graph, mut x: Mat, head_dim: usize, rotation: &Rotation) -> Mat {
    assert_eq!(rotation.table.len(), x.rows() * rotation.half, "one rotation per row");
    if let Some(mat) = x.device_mat() {
        let table = rotation.on(mat.device());
        if device::ops::rotate(g, &mut x, head_dim, rotation.half, table).is_some() {
            return x;
        }
    }
    let (half, table, width) = (rotation.half, Arc::clone(&rotation.table), x.cols());
    host::rotate(x.values_mut(), width, head_dim, &table, half, 1.0);
    // The gradient is multiplied by the transpose, which is the inverse rotation.
    g.record_in_place(&x, move |dx, _| host::rotate(dx, width, head_dim, &table, half, -1.0));
    x
}
