//! The output of `imp-flow runs`, and of repeating a run.

use std::collections::HashSet;

use super::{
    print::{eprint, print},
    style::WARN,
    table::Table,
    units,
};
use crate::store::{RunRecord, RunState, StageState};

/// Warns of stages whose results differ from those of the repeated run.
pub(crate) fn differences(run: &RunRecord, stages: &[&str]) {
    if stages.is_empty() {
        return;
    }
    let version = env!("CARGO_PKG_VERSION");
    let by = if run.made_by == version {
        String::new()
    } else {
        format!(" (made by imp-flow {}, this is {version})", run.made_by)
    };
    eprint(&format!("{WARN}warning:{WARN:#} results differ from run {}: {}{by}", run.id, stages.join(", ")));
}

/// How many stages have a result, and how many of them ran for it.
fn done(ran: usize, cached: usize, all: usize) -> String {
    let parts = if cached == 0 { format!("{ran} ran") } else { format!("{ran} ran, {cached} cached") };
    format!("{} of {all} ({parts})", ran + cached)
}

/// Prints a past run as a line of JSON.
pub(crate) fn run_as_json(run: &serde_json::Value) {
    print(&run.to_string());
}

/// Lists past runs.
pub(crate) fn runs(runs: &[RunRecord]) {
    if runs.is_empty() {
        return print("nothing has run yet");
    }
    let mut table = Table::new(&["run", "name", "pipeline", "started", "took", "ended", "stages"]).right(&["took"]);
    for run in runs {
        // A stage that points share counts once.
        let stages = || run.points.iter().flat_map(|point| &point.stages);
        let distinct = |states: &[StageState]| {
            let counted = stages().filter(|stage| states.is_empty() || states.contains(&stage.state));
            let ids = counted.enumerate().map(|(number, stage)| stage.key.map_or_else(|| Err(number), Ok));
            ids.collect::<HashSet<_>>().len()
        };
        let points = if run.sweep { format!(", {} points", run.points.len()) } else { String::new() };
        table.row([
            run.id.clone(),
            run.name.clone().unwrap_or_default(),
            run.pipeline.clone(),
            units::time(run.started as u64),
            // The time at which the run was killed is unknown.
            if run.ending == RunState::Killed { String::new() } else { units::duration(run.seconds) },
            run.ending.to_string(),
            done(distinct(&[StageState::Ran]), distinct(&[StageState::Cached]), distinct(&[])) + &points,
        ]);
    }
    table.print();
}
