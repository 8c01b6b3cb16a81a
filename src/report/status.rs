//! The output of `imp-flow status`.

use super::{
    foreign::one_line,
    print::print,
    style::{BAD, DIM, GOOD, WARN},
    units, why,
};
use crate::store::{Receipt, Timing};

/// When a stage finished, how long it took, and the size of its output.
pub(crate) fn finished(receipt: &Receipt) -> String {
    let (at, took) = (units::time(receipt.timing.finished), took(&receipt.timing));
    format!("{at}, took {took}, {}", units::bytes(receipt.output.bytes))
}

/// How long a stage took: `29.8 s in 3 sessions`.
pub(super) fn took(timing: &Timing) -> String {
    let sessions = if timing.sessions > 1 { format!(" in {} sessions", timing.sessions) } else { String::new() };
    units::duration(timing.seconds) + &sessions
}

/// The state of a stage.
pub(crate) struct StageStatus {
    pub(crate) stage: String,
    pub(crate) state: Status,
    pub(crate) detail: String,
    /// The same for programs: `finished`, `seconds`, `bytes`, `progress`, `loss`, `waits_for`.
    pub(crate) facts: serde_json::Value,
}

/// The states that `status` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Cached,
    Failed,
    Stopped,
    ToRun,
    Waiting,
}

impl Status {
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

/// Shows the states of all stages.
pub(crate) fn status(pipeline: &str, stages: &[StageStatus], json: bool) {
    if json {
        for StageStatus { stage, state, detail, facts } in stages {
            let mut line = serde_json::json!({"stage": stage, "state": state.word(), "detail": detail});
            if let (Some(line), Some(facts)) = (line.as_object_mut(), facts.as_object()) {
                line.extend(facts.clone());
            }
            print(&line.to_string());
        }
        return;
    }
    let width = stages.iter().map(|stage| stage.stage.len()).max().unwrap_or(0);
    for StageStatus { stage, state, detail, .. } in stages {
        let style = match state {
            Status::Running => GOOD,
            Status::Cached => DIM,
            Status::Failed => BAD,
            Status::Stopped | Status::ToRun | Status::Waiting => WARN,
        };
        let word = state.word();
        let detail = if *state == Status::ToRun { why::reason(detail) } else { one_line(detail) };
        print(&format!("{style}{word:<8}{style:#}  {stage:<width$}  {DIM}{detail}{DIM:#}"));
    }
    let count = |state| stages.iter().filter(|stage| stage.state == state).count();
    let (cached, running) = (count(Status::Cached), count(Status::Running));
    print(&format!("\n{pipeline}: {cached} of {} cached, {running} running", stages.len()));
}
