//! The table and the sentence at the end of a run.

use std::fmt::Write;

use imp_stages::{contract::figure::Role, kinds::figure};

use super::{
    foreign::one_line,
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
    // In a large pipeline, a long list of cached stages would hide the others; what nobody chose is no news.
    let is_large = summary.stages.len() > LISTED;
    let is_listed = |stage: &&StageEnd| match stage.state {
        StageState::LeftOut => false,
        StageState::Cached => !is_large,
        _ => true,
    };
    let listed: Vec<&StageEnd> = summary.stages.iter().filter(is_listed).collect();
    let mut text = String::from("\n");
    let hidden = if listed.is_empty() { 0 } else { write_stages(&mut text, &listed) };
    let count = |state| summary.stages.iter().filter(|stage| stage.state == state).count();
    let cached = if is_large { count(StageState::Cached) } else { 0 };
    let notes = [
        (cached, "more stage", " cached"),
        (count(StageState::LeftOut), "stage", " left out, as asked for"),
        (hidden, "more figure", ": imp-flow show STAGE"),
    ];
    for (number, noun, note) in notes.into_iter().filter(|(number, ..)| *number > 0) {
        let _ = writeln!(text, "{DIM}{}{note}{DIM:#}", units::count(number, noun));
    }
    write_ending(&mut text, summary);
    text
}

/// Writes a line for each stage: its state, time, memory, size and main figures. Returns how many figures are not shown.
fn write_stages(text: &mut String, stages: &[&StageEnd]) -> usize {
    let name = stages.iter().map(|stage| stage.name.chars().count()).max().unwrap_or(0).max(5);
    let state = stages.iter().map(|stage| stage.state.to_string().len()).max().unwrap_or(0).max(5);
    let _ = writeln!(
        text,
        "{DIM}{:<name$}  {:<state$}  {:>12}  {:>8}  {:>8}  results{DIM:#}",
        "stage", "state", "time", "memory", "size"
    );
    let mut hidden = 0;
    for stage in stages {
        let time = stage.seconds.map(units::duration).unwrap_or_default();
        let memory = stage.peak_memory.map(units::bytes).unwrap_or_default();
        let size = stage.output.map(|output| units::bytes(output.bytes)).unwrap_or_default();
        let style = match stage.state {
            StageState::Ran => GOOD,
            StageState::Failed => BAD,
            StageState::Cached => DIM,
            _ => WARN,
        };
        let results = headlines(stage);
        hidden += stage.results.len() - results.len();
        let line = format!(
            "{:<name$}  {style}{:<state$}{style:#}  {time:>12}  {memory:>8}  {size:>8}  {}",
            stage.name,
            stage.state,
            results.join("  ")
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    hidden
}

/// The main figures of a stage, each with its name and unit.
fn headlines(stage: &StageEnd) -> Vec<String> {
    let known = stage.results.iter().filter_map(|(name, value)| Some((name, value, figure(&stage.kind, name)?)));
    let main = known.filter(|(_, _, figure)| figure.role == Role::Headline);
    main.map(|(name, value, figure)| {
        format!("{} {} {}", one_line(name), units::figure(*value), figure.unit).trim_end().into()
    })
    .collect()
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
    if cached + ran > 0 {
        let _ = write!(text, "\n{DIM}artifacts:{DIM:#} {}", summary.artifacts.display());
    }
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
