//! The stage contract and the built-in kinds of stage.
//! Independent of pipelines, scheduling and the store: a stage sees folders and a [`Job`].
//!
//! Imports go down only: `kinds`, then a kind, then what kinds share (`training`, `data`, `image`, `text`, `net`,
//! `model_folder`, `hub_files`, `place`), then `contract`. No kind imports another.

pub mod ask;
pub mod bucket;
pub mod command;
pub mod contract;
pub mod conversation;
pub mod data;
pub mod download;
pub mod eval;
pub mod finetune;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod hub_files;
pub mod image;
pub mod kinds;
pub mod merge;
pub mod model_folder;
mod net;
pub mod place;
pub mod preprocess;
pub mod pretrain;
pub mod push;
pub mod quantize;
#[cfg(any(test, feature = "fuzzing"))]
mod scratch;
pub mod speaker;
#[cfg(feature = "synthetic")]
pub mod synthetic;
#[cfg(test)]
mod testing;
pub mod text;
mod training;

pub use contract::{error::StageError, job::Job, stage::Stage};
pub use kinds::{KINDS, KindVisitor, visit};
