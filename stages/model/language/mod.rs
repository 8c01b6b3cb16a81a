//! Language models.

mod phi;

pub use phi::{Cache, Phi};
