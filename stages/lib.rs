//! The stage contract and the seven built-in kinds of stage.
//! Knows nothing of pipelines, scheduling or the store: a stage sees folders and a [`Job`].

pub mod error;
pub mod event;
pub mod job;
pub mod preprocess;
pub mod stage;

pub use error::StageError;
pub use job::Job;
pub use stage::{KINDS, KindVisitor, Stage, visit};
