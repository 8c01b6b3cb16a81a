//! Language models: one decoder for all families, whose differences are a table in [`crate::family`].

mod attention;
mod block;
mod decoder;
mod mlp;

pub use decoder::{Cache, Decoder};
