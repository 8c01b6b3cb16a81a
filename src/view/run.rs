//! A run: its stages, its points, the drawing of its graph.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use imp_stages::contract::secret::hide_secrets;
use serde::Serialize;

use super::{Layout, changes::ChangesView, stage::StageView};
use crate::{
    pipeline::{Graph, Pipeline},
    store::{Digest, Origin, RunRecord, RunStage, RunState, Store, now},
};

/// Everything that the view of a run is made from.
#[derive(Debug)]
pub(crate) struct RunSource<'a> {
    pub(crate) store: &'a Store,
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) graph: &'a Graph,
    /// The record of the run, without secrets.
    pub(crate) run: &'a RunRecord,
    /// The run of the same pipeline before it.
    pub(crate) before: Option<&'a RunRecord>,
    /// The keys of attempts that have not ended well, by stage.
    pub(crate) attempts: BTreeMap<usize, Digest>,
}

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct RunView {
    id: String,
    name: Option<String>,
    pipeline: String,
    file: PathBuf,
    /// The changes on the command line.
    overrides: Vec<String>,
    sweep: bool,
    /// Seconds since 1970.
    started: f64,
    seconds: f64,
    state: RunState,
    host: String,
    /// The version of imp-flow.
    made_by: String,
    /// What it was started with.
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<Origin>,
    /// The pipeline as TOML, with everything that it extends and all changes applied.
    document: String,
    points: Vec<PointView>,
    /// Each after its inputs.
    pub(crate) stages: Vec<StageView>,
    drawing: Drawing,
    /// What differs from the run of the same pipeline before it.
    changes: Option<ChangesView>,
}

/// A point of a sweep. A run without a sweep has one, without a label.
#[derive(Debug, Serialize)]
struct PointView {
    label: String,
    /// Dotted key -> value, as written.
    values: Vec<(String, String)>,
}

/// Where to draw the boxes of the stages, and the paths of the edges. Units are pixels.
#[derive(Debug, Serialize)]
struct Drawing {
    width: f64,
    height: f64,
    /// Width and height of a box.
    size: (f64, f64),
    /// The left upper corner of each stage's box.
    corners: Vec<(f64, f64)>,
    edges: Vec<Edge>,
}

/// The most bytes of all paths together.
const PATHS: usize = 300_000;

/// An edge from an input to its user, as a path of SVG.
#[derive(Debug, Serialize)]
struct Edge {
    from: usize,
    to: usize,
    path: String,
}

impl RunSource<'_> {
    /// What the record says of a stage.
    pub(super) fn recorded(&self, index: usize) -> Option<&RunStage> {
        let (point, name) = &self.pipeline.stages[index].owners[0];
        let label = &self.pipeline.points[*point].label;
        let point = self.run.points.iter().find(|point| point.label == *label)?;
        point.stages.iter().find(|stage| stage.name == *name)
    }
}

/// The view of a run, without what is long.
pub(super) fn run(source: &RunSource<'_>) -> RunView {
    let RunSource { store, pipeline, graph, run, before, attempts } = source;
    // Stages are numbered in the order of execution, which is the order of the list.
    let place: HashMap<usize, usize> = graph.order().iter().enumerate().map(|(place, stage)| (*stage, place)).collect();
    let stage = |index: &usize| {
        let recorded = source.recorded(*index);
        let key = recorded.and_then(|recorded| recorded.key);
        let receipt = key.and_then(|key| store.receipt(key).ok().flatten());
        let mut view = StageView::new(
            &pipeline.stages[*index],
            run.ending,
            recorded,
            receipt.as_ref(),
            attempts.get(index).copied(),
            store,
        );
        view.inputs.values_mut().for_each(|from| *from = place[from]);
        view
    };
    let stages: Vec<StageView> = graph.order().iter().map(stage).collect();
    RunView {
        id: run.id.clone(),
        name: run.name.clone(),
        pipeline: run.pipeline.clone(),
        file: run.file.clone(),
        overrides: run.overrides.clone(),
        sweep: run.sweep,
        started: run.started,
        // The record of a run is written now and then while it runs.
        seconds: if run.is_running() { now() - run.started } else { run.seconds },
        state: run.ending,
        host: run.host.clone(),
        made_by: run.made_by.clone(),
        origin: run.origin.clone(),
        document: run.document.clone(),
        points: pipeline
            .points
            .iter()
            .map(|point| PointView {
                label: point.label.clone(),
                values: point.values.iter().map(|(key, value)| (key.clone(), hide_secrets(value).into())).collect(),
            })
            .collect(),
        drawing: drawing(&stages),
        changes: before.map(|before| ChangesView::new(run, before)),
        stages,
    }
}

fn drawing(stages: &[StageView]) -> Drawing {
    let inputs: Vec<Vec<usize>> = stages
        .iter()
        .map(|stage| {
            let mut inputs: Vec<usize> = stage.inputs.values().copied().collect();
            inputs.sort_unstable();
            inputs.dedup();
            inputs
        })
        .collect();
    let layout = Layout::new(inputs.iter().map(Vec::as_slice).enumerate(), stages.len());
    let (width, height) = layout.size();
    let edges = || inputs.iter().enumerate().flat_map(|(to, from)| from.iter().map(move |from| (*from, to)));
    let drawn = |path: &dyn Fn(usize, usize) -> String| -> Vec<Edge> {
        edges().map(|(from, to)| Edge { from, to, path: path(from, to) }).collect()
    };
    let mut edges = drawn(&|from, to| layout.path(from, to));
    // In a graph of many long edges, nobody can follow them in their lanes: they are drawn straight.
    if edges.iter().map(|edge| edge.path.len()).sum::<usize>() > PATHS {
        edges = drawn(&|from, to| layout.straight_path(from, to));
    }
    Drawing {
        width,
        height,
        size: super::BOX,
        corners: (0..stages.len()).map(|index| layout.corner(index)).collect(),
        edges,
    }
}
