//! Matrices, the operations on them, and the tape that leads back through them. Everything that knows where a matrix's
//! values lie, and on which device they are computed, is in this folder. Independent of networks.
//!
//! All activations are matrices `[rows, width]` with one row for each token (or image patch). The sequences of a batch
//! lie one after the other without padding; [`Segments`] says where each begins.
//!
//! - [`Mat`] (`mat.rs`): a matrix. Outside this folder its memory is reached by [`Mat::from_host`], [`Mat::to_host`],
//!   [`Mat::item`] and [`Mat::copy_from`] alone. [`Weight`] is a matrix or a frozen one as it lies in a file.
//! - [`Graph`], [`Gradients`] (`tape.rs`): what is recorded, and the way back.
//! - `ops/`: an operation a file, with formula and shapes; `host/`: the loops that compute it on the CPU.
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
