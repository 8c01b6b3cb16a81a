//! The loops of the operations on the CPU, on slices: threads, SIMD and matrix products. Independent of [`super::Mat`]
//! and the tape.
//!
//! Results do not depend on the number of threads: shapes alone determine how work is split, and the order of sums is
//! fixed.

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod dora;
pub(super) mod dropout;
pub(super) mod fresh;
pub(super) mod gather;
mod gemm;
mod gemv;
pub(super) mod linear;
pub(super) mod loss;
pub(super) mod math;
pub(super) mod norm;
pub(super) mod optimizer;
pub(super) mod pointwise;
pub(super) mod product;
pub(super) mod rotary;
pub(super) mod round;
mod shared;
