//! The contract between the runner and a stage: what a kind is, what a running stage is given, and what it reports.
//! Imports nothing else of this crate.

pub mod answers;
pub mod bytes;
pub mod device;
pub mod error;
pub mod event;
pub mod executor;
pub mod figure;
pub mod forecast;
pub mod input;
pub mod job;
pub mod keys;
mod metrics;
mod output;
pub mod paths;
pub mod process_memory;
pub mod published;
pub mod secret;
pub mod setting;
pub mod side_file;
pub mod stage;
mod tensorboard;
