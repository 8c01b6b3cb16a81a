//! The operations, one file each.

mod activation;
mod attention;
mod chunked_loss;
mod gather;
pub(super) mod linear;
mod loss;
mod norm;
mod optimizer;
mod pointwise;
mod recompute;
mod rotary;

pub use activation::{Activation, activation, silu_gate};
pub use attention::{KvCache, Mask, attend_cached, attention};
pub use chunked_loss::sum_over_parts;
pub use gather::{columns, gather, pick_rows};
pub use linear::{Weight, add_low_rank, linear};
pub use loss::{IGNORE, cross_entropy};
pub use norm::{layer_norm, rms_norm};
pub use optimizer::{AdamW, Moments, global_norm};
pub(crate) use pointwise::mix;
pub use pointwise::{accumulate, add, dropout};
pub use recompute::checkpoint;
pub use rotary::{Rotary, Rotation, rotate};
