//! The stage contract and the seven built-in kinds of stage.
//! Knows nothing of pipelines, scheduling or the store: a stage sees folders and a [`Job`].

pub mod bytes;
pub mod download;
pub mod error;
pub mod eval;
pub mod event;
pub mod finetune;
pub mod forecast;
pub mod job;
pub mod memory;
pub mod merge;
pub mod preprocess;
pub mod pretrain;
pub mod quantize;
pub mod stage;
#[cfg(feature = "synthetic")]
pub mod synthetic;
mod tensorboard;
#[cfg(test)]
mod testing;
mod training;

pub use error::StageError;
pub use job::Job;
pub use stage::{KINDS, KindVisitor, Stage, visit};
