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
    let width = summary.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0).max(5);
    // In a large pipeline, a long list of cached stages would hide the others.
    let is_listed = |stage: &&StageEnd| summary.stages.len() <= LISTED || stage.state != StageState::Cached;
    let listed: Vec<&StageEnd> = summary.stages.iter().filter(is_listed).collect();
    let mut text = String::new();
    write_stages(&mut text, &listed, width);
    let unlisted = summary.stages.len() - listed.len();
    if unlisted > 0 {
        let _ = writeln!(text, "{DIM}{unlisted} more were cached{DIM:#}");
    }
    write_results(&mut text, &listed, width);
    write_ending(&mut text, summary);
    text
}

/// Writes a line for each stage: its state, time, memory, size and artifact.
fn write_stages(text: &mut String, stages: &[&StageEnd], width: usize) {
    let _ = writeln!(
        text,
        "\n{DIM}{:<width$}  {:<11}  {:>12}  {:>8}  {:>8}  artifact{DIM:#}",
        "stage", "state", "time", "memory", "size"
    );
    for stage in stages {
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
}

/// Writes the results of the stages that have some.
fn write_results(text: &mut String, stages: &[&StageEnd], width: usize) {
    if stages.iter().all(|stage| stage.results.is_empty()) {
        return;
    }
    let _ = writeln!(text, "\n{DIM}{:<width$}  results{DIM:#}", "stage");
    for stage in stages.iter().filter(|stage| !stage.results.is_empty()) {
        let figures: Vec<String> =
            stage.results.iter().map(|(name, value)| format!("{name} {}", units::figure(*value))).collect();
        let _ = writeln!(text, "{:<width$}  {}", stage.name, figures.join("  "));
    }
}

/// Writes how the run ended, and what the user can do.
fn write_ending(text: &mut String, summary: &Summary) {
    let count = |state| summary.stages.iter().filter(|stage| stage.state == state).count();
    let (cached, ran) = (count(StageState::Cached), count(StageState::Ran));
    let open = summary.stages.len() - cached - ran - count(StageState::Failed) - count(StageState::LeftOut);
    let took = units::duration(summary.seconds);
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
