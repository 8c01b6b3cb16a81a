//! Training, whatever trains: one loop, its data, its checkpoints. The kinds `pretrain` and `finetune` choose
//! what trains and write the output.

mod batches;
mod checkpoint;
mod divergence;
mod features;
mod figures;
mod forecast;
mod gradients;
mod held_out;
mod inputs;
pub(crate) mod keys;
mod policy;
mod recipe;
mod run;
mod speed;
#[cfg(test)]
mod tests;

pub(crate) use figures::FIGURES;
pub(crate) use forecast::forecast;
pub(crate) use inputs::{open_records, open_validation};
pub(crate) use recipe::Recipe;
pub(crate) use run::train;
