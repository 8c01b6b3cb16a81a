//! The operations, one per file: formula, paper, shapes, and what is saved for the backward pass. An operation is computed
//! where its first input lies: by [`super::host`] on the CPU, by [`super::device::ops`] on a device. Independent of threads,
//! loops and kernels.

mod activation;
mod add;
mod attention;
mod cached_attention;
mod chunked_loss;
mod columns;
mod dora;
mod dropout;
mod gather;
mod layer_norm;
mod linear;
mod loss;
mod low_rank;
mod noise;
mod optimizer;
mod recompute;
mod rms_norm;
mod rotary;
mod scale;
mod silu_gate;

pub use activation::{Activation, activation};
pub use add::{accumulate, add, add_rows};
pub use attention::attention;
pub use cached_attention::attend_cached;
pub use chunked_loss::sum_over_chunks;
pub use columns::columns;
pub use dora::{row_norms, set_norms};
pub use dropout::{dropout, dropout_rest};
pub use gather::{concat, gather, pick_rows};
pub use layer_norm::layer_norm;
pub use linear::{linear, linear_each, linear_in_f32};
pub use loss::{IGNORE, cross_entropy};
pub use low_rank::add_low_rank;
pub use noise::add_noise;
pub use optimizer::{AdamW, Moments, Step, global_norm, squares, squares_and_item};
pub use recompute::recompute;
pub use rms_norm::rms_norm;
pub use rotary::{Rotation, rotate};
pub use scale::scale_columns;
pub use silu_gate::silu_gate;
