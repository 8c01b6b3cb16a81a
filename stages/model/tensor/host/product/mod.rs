//! Matrix products. Operands are rounded to bf16, if the precision says so, while they are packed into panels; all sums are
//! in f32.
//!
//! An element of the result is always the same chain of operations, whatever the number of threads and of rows: of two
//! neighbours along the sum, `fma(even, fma(odd, sum))`. In bf16 products are exact, so that a processor without that operation
//! computes the same sums as one with AVX512-BF16, whose instruction is that chain. But it takes subnormal operands for zero and
//! makes subnormal sums zero.

mod halves;
mod kernel;
#[cfg(target_arch = "x86_64")]
mod native;
mod pack;
mod part;
mod task;
mod tasks;
mod values;

pub use kernel::{Native, native};
pub(super) use pack::{Operand, transposed};
pub(super) use part::{Output, Right};
pub(super) use tasks::{add_product, new_product, new_products, product};
