//! Language models: one decoder for the families that Imp is built on. What differs between them is a table in
//! `family.rs`.

mod attention;
mod block;
mod decoder;
pub(crate) mod family;
mod mlp;

pub use decoder::{Cache, Decoder};
pub use family::{Family, Input, Layer, Part};
