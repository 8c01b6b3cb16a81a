//! Matrices, differentiable operations on them, and the tape for the backward pass. All code that depends on where
//! values are stored and on which device they are computed is in this module. Independent of networks.
//!
//! All activations are matrices `[rows, width]` with one row per token or image patch. The sequences of a batch are
//! packed one after the other without padding; [`Segments`] has their boundaries.
//!
//! - [`Mat`] (`mat.rs`): a matrix. Outside this module its memory is accessed only through [`Mat::from_host`],
//!   [`Mat::to_host`], [`Mat::item`] and [`Mat::copy_from`]. [`Weight`] is a matrix, or a frozen matrix in a file's
//!   encoding.
//! - [`Graph`], [`Gradients`] (`tape.rs`): the tape and the result of the backward pass.
//! - `ops/`: one operation per file, with formula and shapes; `host/`: the loops that compute them on the CPU;
//!   `device/`: the kernels that compute them on a GPU.
//! - [`Transfer`] (`exchange.rs`): values that pass from place to place beside what is being computed.
//! - [`Place`] (`place.rs`): where matrices lie, and the precision of products with them.
//!
//! Results do not depend on the number of threads: shapes alone determine how work is split, and the order of sums is
//! fixed.

mod device;
mod exchange;
mod host;
mod identity;
mod kv_cache;
mod mat;
mod ops;
mod place;
mod segments;
mod stored;
mod tape;
mod weight;

pub use device::{Card, Device, DeviceError, Probe, Repeated, Repeats, Spent, Waits, free_bytes, probe};
pub use exchange::{Fault, Point, Transfer, Unconnected, connect};
pub(crate) use host::{dora::LEAST as LEAST_SQUARE, dropout::mix};
pub use host::{
    math::argmax,
    product::{Native, native},
};
pub use kv_cache::KvCache;
pub use mat::Mat;
pub use ops::{
    Activation, AdamW, IGNORE, Moments, Rotation, Step, accumulate, activation, add, add_low_rank, add_noise, add_rows,
    attend_cached, attention, columns, concat, cross_entropy, dropout, dropout_rest, gather, global_norm, layer_norm,
    linear, linear_each, linear_in_f32, pick_rows, recompute, rms_norm, rotate, row_norms, scale_columns, set_norms,
    silu_gate, squares, squares_and_item, sum_over_chunks,
};
pub use place::Place;
pub use segments::{Mask, Segments};
pub use stored::{Bytes, Stored};
pub use tape::{Gradients, Graph};
pub use weight::Weight;
