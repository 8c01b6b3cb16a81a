//! The table and the sentence at the end of a run.

use std::fmt::Write;

use super::{
    style::{BAD, DIM, GOOD, WARN},
    units,
};
use crate::{
    scheduler::{Ending, StageEnd, Summary},
    store::StageState,
};

/// In pipelines with more stages than this, cached stages are counted instead of listed.
const LISTED: usize = 40;

/// Describes the end of a run.
pub(super) fn summary(summary: &Summary) -> String {
    let count = |state| summary.stages.iter().filter(|stage| stage.state == state).count();
    let (cached, ran) = (count(StageState::Cached), count(StageState::Ran));
    let open = summary.stages.len() - cached - ran - count(StageState::Failed) - count(StageState::LeftOut);
    let took = units::duration(summary.seconds);
    let mut text = String::new();
    let width = summary.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "\n{DIM}{:<width$}  {:<11}  {:>12}  {:>8}  {:>8}  artifact{DIM:#}",
        "stage", "state", "time", "memory", "size"
    );
    // In a large pipeline, a long list of cached stages would hide the others.
    let listed = |stage: &&StageEnd| summary.stages.len() <= LISTED || stage.state != StageState::Cached;
    for stage in summary.stages.iter().filter(listed) {
        let time = stage.seconds.map(units::duration).unwrap_or_default();
        let memory = stage.peak_memory.map(units::bytes).unwrap_or_default();
        let size = stage.output.map(|output| units::bytes(output.bytes)).unwrap_or_default();
        let link = stage.link.as_ref().map(|link| link.display().to_string()).unwrap_or_default();
        let style = match stage.state {
            StageState::Ran => GOOD,
            StageState::Failed => BAD,
            StageState::Cached => DIM,
            _ => WARN,
        };
        let _ = writeln!(
            text,
            "{:<width$}  {style}{:<11}{style:#}  {time:>12}  {memory:>8}  {size:>8}  {link}",
            stage.name, stage.state
        );
    }
    let unlisted = summary.stages.len() - summary.stages.iter().filter(listed).count();
    if unlisted > 0 {
        let _ = writeln!(text, "{DIM}{unlisted} more were cached{DIM:#}");
    }
    let with_results = || summary.stages.iter().filter(listed).filter(|stage| !stage.results.is_empty());
    if with_results().next().is_some() {
        let _ = writeln!(text, "\n{DIM}{:<width$}  results{DIM:#}", "stage");
        for stage in with_results() {
            let figures: Vec<String> =
                stage.results.iter().map(|(name, value)| format!("{name} {}", units::figure(*value))).collect();
            let _ = writeln!(text, "{:<width$}  {}", stage.name, figures.join("  "));
        }
    }
    let name = &summary.pipeline;
    let _ = match summary.ending {
        Ending::Done if ran == 0 => {
            write!(text, "\n{GOOD}{name} is up to date{GOOD:#}: {cached} of {cached} cached ({took})")
        }
        Ending::Done => {
            write!(text, "\n{GOOD}{name} is done{GOOD:#}: {ran} ran, {cached} cached ({took})")
        }
        Ending::Failed => write!(
            text,
            "\n{BAD}{name} failed{BAD:#} after {took}: {} (see above); {ran} ran, {cached} cached, {open} not run. \
             Fix the error and run the same command again.",
            failed(summary)
        ),
        Ending::Interrupted => write!(
            text,
            "\n{WARN}{name}: interrupted{WARN:#} after {took}, {} of {} stages done. Run the same command again to resume.",
            cached + ran,
            cached + ran + open
        ),
    };
    text
}

/// Names the stages that failed.
fn failed(summary: &Summary) -> String {
    let failed = summary.stages.iter().filter(|stage| stage.state == StageState::Failed);
    let names: Vec<String> = failed.map(|stage| format!("`{}`", stage.name)).collect();
    match names.as_slice() {
        [name] => format!("stage {name} failed"),
        names => format!("stages {} failed", names.join(", ")),
    }
}
