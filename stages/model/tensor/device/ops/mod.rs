//! The operations of [`crate::tensor::ops`] on matrices of a device, forward and backward; the formulas are there. Each
//! launches the kernels of a file of `kernels/`, whose parameters it passes in the order of their signatures.
//!
//! A gradient's memory is undefined until its first kernel has written it: kernels take a flag that says whether to add.

mod activation;
mod attention;
mod dora;
mod gather;
mod linear;
mod loss;
mod norm;
mod optimizer;
mod pointwise;

pub(in crate::tensor) use activation::{activation, silu_gate};
pub(in crate::tensor) use attention::{Piece, attend_cached, attention};
pub(in crate::tensor) use dora::{row_norms, set_norms};
pub(in crate::tensor) use gather::{Source, columns, concat, gather, scatter_rows};
pub(in crate::tensor) use linear::{Operand, add_low_rank, linear};
pub(in crate::tensor) use loss::{ChunkedLoss, cross_entropy};
pub(in crate::tensor) use norm::{layer_norm, rms_norm};
pub(in crate::tensor) use optimizer::{Queued, adamw, sums_of_squares};
pub(in crate::tensor) use pointwise::{accumulate, add, add_rows, dropout, rotate, scale_columns};

use std::sync::Arc;

use super::{Buffer, DeviceMat, Type, launch::Kernel};

/// The matrix stored as `kind`: itself, or a converted copy.
pub(in crate::tensor) fn converted(mat: &DeviceMat, kind: Type) -> DeviceMat {
    if mat.kind == kind {
        return mat.clone();
    }
    let name = match (kind, &mat.rounded) {
        (Type::Bf16, Some(rounded)) => return DeviceMat::of_buffer(Arc::clone(rounded), mat.rows, mat.cols, kind),
        (Type::Bf16, None) => "to_bf16",
        (Type::F32, _) => "to_f32",
    };
    let to = DeviceMat::new(mat.device(), mat.rows, mat.cols, kind);
    Kernel::new(mat.device(), name).at(&mat.buffer).at(&to.buffer).count(mat.count()).by_elements(mat.count());
    to
}

/// The matrix with a copy in bf16 that [`converted`] gives out from now on.
pub(in crate::tensor) fn with_rounded(mat: DeviceMat) -> DeviceMat {
    let rounded = Some(converted(&mat, Type::Bf16).buffer);
    DeviceMat { rounded, ..mat }
}

/// Rows of which one block computes a partial sum over rows.
const ROWS_PER_PART: usize = 64;

/// The number of parts, and the memory for their sums of `width` values each.
fn parts(like: &DeviceMat, width: usize) -> (usize, Buffer) {
    let parts = like.rows.div_ceil(ROWS_PER_PART);
    (parts, Buffer::new(like.device(), parts * width * 4))
}

/// `to (+)= ` the sum over parts, in order, of `count` values that begin at `offset` of each part of `stride` values.
fn sum_parts(partial: &Buffer, parts: usize, stride: usize, offset: usize, to: &crate::tensor::tape::Slot) {
    let count = to.mat.count();
    Kernel::new(partial.device(), "sum_parts")
        .value(partial.address() + (offset * 4) as u64)
        .count(stride)
        .at(&to.mat.buffer)
        .int(parts)
        .int(count)
        .adding(to.add)
        .by_elements(count);
}

/// Uploads a table that kernels read.
fn table<T: bytemuck::NoUninit>(like: &DeviceMat, values: &[T]) -> Arc<Buffer> {
    Arc::new(Buffer::of(like.device(), values))
}
