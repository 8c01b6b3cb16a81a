//! The layers of the networks: operations of [`crate::tensor`] with named weights that may train.

mod importance;
mod linear;
mod lora;
mod norm;
mod parameter;
mod pass;
mod random;

pub use importance::{Importance, Observer};
pub use linear::Linear;
pub use lora::{Lora, LoraSettings, Magnitude};
pub use norm::Norm;
pub use parameter::{Parameter, Role, Tower};
pub use pass::Pass;
pub(crate) use random::{fnv1a, uniform};
