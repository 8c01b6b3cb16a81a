//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in GPT-NeoX's layout: dimension `i` is paired with
//! `i + dims / 2` and rotated by the angle `position * frequency`. Independent of how frequencies are chosen.

use std::sync::{Arc, OnceLock};

use crate::tensor::{
    Graph, Mat,
    device::{self, Buffer, Device},
    host::rotary as host,
};

/// The (cos, sin) of each row and pair of dimensions: `[rows, half]`. The same in all layers.
#[derive(Clone, Debug)]
pub struct Rotation {
    half: usize,
    table: Arc<[[f32; 2]]>,
    /// The table on the device of the first matrix that was rotated there.
    uploaded: Arc<OnceLock<Arc<Buffer>>>,
}

impl Rotation {
    /// The rotations of rows, each given as its position and the frequency of each pair of dimensions; queries and keys are
    /// multiplied by `magnitude`, too. In f32 as in the reference: at large positions, f64 would give noticeably different angles.
    pub fn new<'a>(rows: impl IntoIterator<Item = (usize, &'a [f32])>, magnitude: f32) -> Self {
        let mut half = 0;
        let table = rows
            .into_iter()
            .flat_map(|(position, frequencies)| {
                half = frequencies.len();
                let angles = frequencies.iter().map(move |frequency| position as f32 * frequency);
                angles.map(|angle| [magnitude * angle.cos(), magnitude * angle.sin()])
            })
            .collect();
        Self { half, table, uploaded: Arc::default() }
    }

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
    // The gradient is multiplied by the transpose, which is the rotation back.
    g.record_in_place(&x, move |dx, _| host::rotate(dx, width, head_dim, &table, half, -1.0));
    x
}
