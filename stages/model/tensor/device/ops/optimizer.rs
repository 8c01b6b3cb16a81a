//! AdamW over all parameters in one launch, and the sum of squares of all gradients: `kernels/optimizer.cuh`.

use std::sync::Arc;

use super::converted;
use crate::tensor::{
    Mat,
    device::{Buffer, DeviceMat, Type, launch::Kernel},
    host::optimizer::Coefficients,
};

/// Values per block.
const PER_BLOCK: usize = 4096;
const THREADS: u32 = 256;

/// A parameter, its two moments and its gradient, whose memory is kept until the step.
pub(in crate::tensor) struct Queued {
    buffers: [Arc<Buffer>; 4],
    count: usize,
    by: Coefficients,
}

impl Queued {
    /// `None` if the matrices lie in host memory.
    pub(in crate::tensor) fn new(modified: [&mut Mat; 3], gradient: &Mat, by: Coefficients) -> Option<Self> {
        let gradient = gradient.device_mat()?;
        let [w, m, v] = modified.map(|mat| Some(Arc::clone(&mat.device_mat_mut()?.buffer)));
        Some(Self { buffers: [w?, m?, v?, Arc::clone(&gradient.buffer)], count: gradient.count(), by })
    }
}

/// The kernels' description of a parameter.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Described {
    w: u64,
    m: u64,
    v: u64,
    g: u64,
    count: i64,
    decay: f32,
    step_size: f32,
}

/// What all parameters of a step have in common.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Common {
    scale: f32,
    new1: f32,
    beta2: f32,
    new2: f32,
    root: f32,
    epsilon: f32,
}

/// The table that shares blocks of [`PER_BLOCK`] values out between matrices: matrix, and block in it.
fn blocks(counts: impl Iterator<Item = usize>) -> Vec<[i32; 2]> {
    let of =
        |(index, count): (usize, usize)| (0..count.div_ceil(PER_BLOCK)).map(move |block| [index as i32, block as i32]);
    counts.enumerate().flat_map(of).collect()
}

/// Takes one step. All parameters have the same coefficients but for decay and step size.
pub(in crate::tensor) fn adamw(queued: &[Queued]) {
    let Some(first) = queued.first() else { return };
    let device = first.buffers[0].device();
    let Coefficients { scale, new1, beta2, new2, root, epsilon, .. } = first.by;
    let common = Common { scale, new1, beta2, new2, root, epsilon };
    let described: Vec<Described> = queued
        .iter()
        .map(|Queued { buffers, count, by }| {
            let [w, m, v, g] = buffers.each_ref().map(|buffer| buffer.address());
            Described { w, m, v, g, count: *count as i64, decay: by.decay, step_size: by.step_size }
        })
        .collect();
    let blocks = blocks(queued.iter().map(|parameter| parameter.count));
    Kernel::new(device, "adamw")
        .at(&Buffer::of(device, &described))
        .at(&Buffer::of(device, &blocks))
        .value(common)
        .run([blocks.len() as u32, 1, 1], THREADS, 0);
}

/// The sum of the squares of the values of each of `mats`, which are in f32, and the value of `item`, `[1, 1]`, if there is one. Waits
/// for the device, once.
pub(in crate::tensor) fn sums_of_squares(mats: &[&DeviceMat], item: Option<&DeviceMat>) -> (Vec<f64>, Option<f32>) {
    let Some(device) = mats.first().map(|mat| mat.device()) else {
        return (Vec::new(), item.map(|item| item.to_host()[0]));
    };
    let described: Vec<Described> = mats
        .iter()
        .map(|mat| {
            let (g, count) = (mat.buffer.address(), mat.count() as i64);
            Described { w: 0, m: 0, v: 0, g, count, decay: 0.0, step_size: 0.0 }
        })
        .collect();
    let blocks = blocks(mats.iter().map(|mat| mat.count()));
    // The item lies after the sums.
    let item = item.map(|item| converted(item, Type::F32));
    let mut partial = vec![0.0_f64; blocks.len() + usize::from(item.is_some())];
    let sums = Buffer::new(device, partial.len() * 8);
    if let Some(item) = &item {
        sums.copy(blocks.len() * 8, &item.buffer, 0, 4);
    }
    Kernel::new(device, "sum_of_squares")
        .at(&Buffer::of(device, &described))
        .at(&Buffer::of(device, &blocks))
        .at(&sums)
        .run([blocks.len() as u32, 1, 1], THREADS, 0);
    sums.read(&mut partial);
    let item = item.and_then(|_| partial.pop()).map(|bits| f32::from_bits(bits.to_bits() as u32));
    let mut partial = partial.into_iter();
    (mats.iter().map(|mat| partial.by_ref().take(mat.count().div_ceil(PER_BLOCK)).sum()).collect(), item)
}
