//! Decides what runs, when and why. Prints nothing: it emits [`RunEvent`]s.

mod board;
mod device;
mod error;
mod event;
mod forecast;
mod lookup;
mod plan;
mod remaining;
mod remote;
mod resources;
mod run;
mod selection;
mod step;
mod stop;
mod why;

pub(crate) use error::SchedulerError;
pub(crate) use event::{Ending, Exchange, RunEvent, StageEnd, Start, Summary};
pub(crate) use lookup::MissReason;
pub(crate) use plan::{Planner, Verdict};
pub(crate) use run::{Options, run};
pub(crate) use selection::{Names, Selection};
pub(crate) use step::Retry;
pub(crate) use why::{Why, WhyState};
