//! Decides what runs, when and why. Prints nothing: it emits [`RunEvent`]s.

mod event;
mod forecast;
mod plan;
mod resources;
mod run;
mod selection;
mod settle;
mod signals;
mod step;
mod why;

pub(crate) use event::{Ending, RunEvent, StageEnd, Summary};
pub(crate) use plan::{MissReason, Planner, Verdict};
pub(crate) use run::{Options, run};
pub(crate) use selection::{Names, Selection};
pub(crate) use why::{Why, WhyState};
