//! Products of bf16 operands, summed in f32, with the processor's own instruction (AVX512-BF16). Operands are rounded while they
//! are packed into panels of words, a word being two neighbours along the sum.
//!
//! An element of the result is always the same chain of operations, whatever the number of threads and of rows: only
//! [`product::PAIRS`] enters it. The instruction is `fma(even, fma(odd, sum))`, but takes subnormal operands for zero and makes
//! subnormal sums zero. `Kernel::Portable` computes that chain on every processor, for tests.

mod kernel;
pub(super) mod linear;
mod pack;
mod product;

pub(super) use kernel::Kernel;
pub use kernel::{Native, native};
