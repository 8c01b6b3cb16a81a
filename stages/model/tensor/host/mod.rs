//! The loops of the operations on the CPU.

pub(super) mod gemm;
pub(super) mod gemv;
pub(super) mod math;
pub(super) mod shared;
