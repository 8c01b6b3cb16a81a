//! The loops of the operations on the CPU, on plain slices: threads, SIMD and matrix products. Independent of matrices,
//! the tape and what is recorded.
//!
//! No result depends on the number of threads: work is cut by the shapes alone, and sums run in a fixed order.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod dropout;
pub(super) mod gather;
mod gemm;
mod gemv;
pub(super) mod linear;
pub(super) mod loss;
pub(super) mod math;
pub(super) mod norm;
pub(super) mod optimizer;
pub(super) mod pointwise;
pub(super) mod rotary;
mod shared;
