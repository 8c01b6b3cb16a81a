//! The layers that networks are made of: a weight, its name, and how it trains.

mod linear;
mod norm;
mod parameter;
mod pass;

pub use linear::{Linear, Lora, LoraSettings};
pub use norm::Norm;
pub use parameter::{Parameter, Role, Tower};
pub use pass::Pass;

/// A stable hash of a name (FNV-1a), so that each layer draws random numbers of its own.
pub(crate) fn fnv1a(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
