//! Training: one loop, its data, its checkpoints. Independent of what trains and of the output, which the kinds `pretrain`
//! and `finetune` choose and write.

mod batches;
mod checkpoint;
mod digest;
mod divergence;
mod exchange;
mod features;
mod figures;
mod forecast;
mod foreign;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod gradients;
mod held_out;
mod inputs;
pub(crate) mod keys;
mod labels;
mod policy;
mod recipe;
mod run;
mod sizes;
mod speed;
mod team;
#[cfg(test)]
mod tests;

pub(crate) use figures::FIGURES;
pub(crate) use forecast::{conversation_template, forecast};
pub(crate) use foreign::FOREIGN_KEYS;
pub(crate) use held_out::{HeldOut, Loss};
pub(crate) use inputs::{Inputs, record_set};
pub(crate) use recipe::Recipe;
pub(crate) use run::train;
