//! Matrices and the tape: the only place that knows dfdx. dfdx holds data, identities and the tape of
//! backward operations; everything heavy is a fused operation of ours that records itself on that tape.
//!
//! All activations are matrices `[rows, width]` with one row a token (or image patch). Sequences of a batch
//! lie one after the other without padding; [`Segments`] says where each begins.
//!
//! No result depends on the number of threads: work is cut into tiles by the shapes alone, and sums run in a
//! fixed order.

mod host;
mod kv_cache;
mod mat;
mod ops;
mod segments;
mod stored;
mod tape;
mod weight;

pub(crate) use host::dropout::mix;
pub use host::math::argmax;
pub use kv_cache::KvCache;
pub use mat::Mat;
pub use ops::{
    Activation, AdamW, IGNORE, Moments, Rotary, Rotation, accumulate, activation, add, add_low_rank, add_rows,
    attend_cached, attention, columns, concat, cross_entropy, dropout, gather, global_norm, layer_norm, linear,
    pick_rows, recompute, rms_norm, rotate, silu_gate, sum_over_chunks,
};
pub use segments::{Mask, Segments};
pub use stored::{Bytes, Stored};
pub use tape::{Gradients, Graph};
pub use weight::Weight;
