//! What `imp-flow status` says.

use super::{
    print::say,
    style::{BAD, DIM, GOOD, WARN},
    units,
};
use crate::store::Receipt;

/// When a stage was made and what it takes.
pub(crate) fn made(receipt: &Receipt) -> String {
    let (at, took) = (units::time(receipt.timing.finished), units::duration(receipt.timing.seconds));
    format!("{at}, took {took}, {}", units::bytes(receipt.output.bytes))
}

/// Where a stage stands, for `status`.
pub(crate) struct Standing {
    pub(crate) stage: String,
    pub(crate) state: StandingState,
    pub(crate) detail: String,
}

/// The states that `status` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StandingState {
    Running,
    Cached,
    Failed,
    Stopped,
    ToRun,
    Waiting,
}

impl StandingState {
    fn word(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Cached => "cached",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::ToRun => "to run",
            Self::Waiting => "waiting",
        }
    }
}

/// Where the stages of a pipeline stand.
pub(crate) fn status(pipeline: &str, stages: &[Standing], json: bool) {
    if json {
        for Standing { stage, state, detail } in stages {
            say(&serde_json::json!({"stage": stage, "state": state.word(), "detail": detail}).to_string());
        }
        return;
    }
    let width = stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for Standing { stage, state, detail } in stages {
        let style = match state {
            StandingState::Running => GOOD,
            StandingState::Cached => DIM,
            StandingState::Failed => BAD,
            StandingState::Stopped | StandingState::ToRun | StandingState::Waiting => WARN,
        };
        let word = state.word();
        say(&format!("{style}{word:<8}{style:#}  {stage:<width$}  {DIM}{detail}{DIM:#}"));
    }
    let count = |state| stages.iter().filter(|stage| stage.state == state).count();
    let (cached, running) = (count(StandingState::Cached), count(StandingState::Running));
    say(&format!("\n{pipeline}: {cached} of {} cached, {running} running", stages.len()));
}
