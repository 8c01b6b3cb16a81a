//! Language models: one decoder for the families that Imp is built on. What differs between them is in
//! [`crate::config::LanguageConfig`], which names and sizes the layers, and in the blocks.

mod attention;
mod block;
mod decoder;
mod mlp;

pub use decoder::{Cache, Decoder};
