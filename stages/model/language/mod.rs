//! Language models: one decoder for all families, whose differences are a table in `family.rs`.

mod attention;
mod block;
mod decoder;
pub(crate) mod family;
mod mlp;

pub use decoder::{Cache, Decoder};
pub use family::{Family, Input, Layer, Part};
