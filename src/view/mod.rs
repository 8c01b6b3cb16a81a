//! What a report shows, as plain data: runs, stages, curves, answers. Read from records, receipts and artifacts; nothing here
//! changes anything. Independent of how it is shown. The fields are documented in `docs/REPORT.md`.

mod answers;
mod changes;
mod curve;
mod kinds;
mod layout;
mod log;
mod run;
mod scale;
mod stage;
mod thumbnails;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

pub(crate) use answers::{AnswerRow, AnswerSet, all_rows};
pub(crate) use changes::{ChangesView, FigureChange, ParameterChange, stages};
pub(crate) use kinds::besides_defaults;
pub(crate) use layout::{BOX, Layout};
pub(crate) use run::RunSource;
pub(crate) use scale::{figures, run_of_today};
pub(crate) use stage::is_open;
use {kinds::KindView, run::RunView};

/// What a page shows. Each field is a field of the page's JSON.
#[derive(Debug, Serialize)]
pub(crate) struct Page {
    format: &'static str,
    version: u32,
    /// The version of imp-flow that wrote the page.
    made_by: &'static str,
    pub(crate) runs: Vec<RunView>,
    /// What the kinds of stages and their keys mean, by kind.
    kinds: BTreeMap<String, KindView>,
    /// Tables of published results, with the models of the runs.
    tables: Vec<Value>,
    answers: Vec<AnswerSet>,
    /// Small images for answers, as `data:` addresses.
    images: Vec<String>,
}

/// Raised when a field changes its meaning. Fields may be added at any time.
const VERSION: u32 = 1;

/// How much of what can be long is shown, so that a page stays small.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Points of a curve.
    points: usize,
    /// Files of an output.
    files: usize,
    /// Bytes of the end of a log.
    log: usize,
    /// Answers of a stage.
    answers: usize,
}

/// The points of all curves together. Others divide in the same way.
const POINTS: usize = 60_000;
const FILES: usize = 4_000;
const LOG: usize = 300_000;
const ANSWERS: usize = 3_000;

impl Limits {
    /// For this many curves, stages and sets of answers.
    fn new(curves: usize, stages: usize, sets: usize) -> Self {
        let share = |all: usize, parts: usize, least: usize, most: usize| (all / parts.max(1)).clamp(least, most);
        Self {
            points: share(POINTS, curves, 100, 2000),
            files: share(FILES, stages, 2, 20),
            log: share(LOG, stages, 300, 6000),
            answers: share(ANSWERS, sets, 50, 500),
        }
    }
}

/// The page of some runs. `tables` has the tables of published results.
pub(crate) fn page(sources: &[RunSource<'_>], tables: Vec<Value>) -> Page {
    let mut runs: Vec<RunView> = sources.iter().map(run::run).collect();
    // Stages that train have five metrics.
    let curves = 5 * runs.iter().flat_map(|run| &run.stages).filter(|stage| stage.has_metrics()).count();
    let stages = runs.iter().map(|run| run.stages.len()).sum();
    let found: Vec<Vec<answers::Found>> = sources.iter().map(answers::find).collect();
    let limits = Limits::new(curves, stages, found.iter().map(Vec::len).sum());
    for (run, source) in runs.iter_mut().zip(sources) {
        for stage in &mut run.stages {
            stage.fill(source.store, limits);
        }
    }
    let mut sets = Vec::new();
    for (index, (source, found)) in sources.iter().zip(&found).enumerate() {
        sets.extend(found.iter().filter_map(|found| answers::read(source, found, index, limits.answers)));
    }
    let images = thumbnails::of(&mut sets, sources);
    let kinds: BTreeSet<&str> = runs.iter().flat_map(|run| &run.stages).map(|stage| stage.kind.as_str()).collect();
    Page {
        format: "imp-flow report",
        version: VERSION,
        made_by: env!("CARGO_PKG_VERSION"),
        kinds: kinds.into_iter().filter_map(|kind| Some((kind.to_string(), kinds::of(kind)?))).collect(),
        runs,
        tables,
        answers: sets,
        images,
    }
}
