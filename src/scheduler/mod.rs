//! Decides what runs, when and why. Prints nothing: it emits [`RunEvent`]s.

mod event;
mod forecast;
mod plan;
mod run;
mod step;

pub(crate) use event::{Ending, RunEvent, StageEnd, Summary};
pub(crate) use plan::{MissReason, Planner, Verdict};
pub(crate) use run::{Options, run};
