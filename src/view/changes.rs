//! What differs between a run and the run of the same pipeline before it: parameters, contents, figures.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::stage::FigureView;
use crate::{
    pipeline::Document,
    store::{RunPoint, RunRecord, RunStage},
};

/// The differences.
#[derive(Debug, Serialize)]
pub(crate) struct ChangesView {
    /// The run before: its id, and when it started, in seconds since 1970.
    since: String,
    since_started: f64,
    /// Values of the pipeline, as TOML.
    pub(crate) parameters: Vec<ParameterChange>,
    /// Stages with another content, by point and stage: `POINT/STAGE`, or `STAGE` without a sweep.
    pub(crate) contents: Vec<String>,
    /// Stages that only one of the runs has.
    pub(crate) added: Vec<String>,
    pub(crate) removed: Vec<String>,
    /// Figures that moved.
    pub(crate) figures: Vec<FigureChange>,
}

/// A value that differs. `None` where there is none.
#[derive(Debug, Serialize)]
pub(crate) struct ParameterChange {
    pub(crate) key: String,
    pub(crate) old: Option<String>,
    pub(crate) new: Option<String>,
}

/// A figure that differs.
#[derive(Debug, Serialize)]
pub(crate) struct FigureChange {
    pub(crate) stage: String,
    pub(crate) old: f64,
    #[serde(flatten)]
    pub(crate) new: FigureView,
}

impl ChangesView {
    pub(crate) fn new(run: &RunRecord, before: &RunRecord) -> Self {
        let [new, old] = [run, before].map(|run| Document::parameters(&run.document));
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let text = |value: Option<&toml::Value>| value.map(ToString::to_string);
        let parameters = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
        let parameters = parameters.map(|key| ParameterChange {
            key: key.clone(),
            old: text(old.get(key)),
            new: text(new.get(key)),
        });
        let [now, then] = [run, before].map(stages);
        let mut changes = Self {
            since: before.id.clone(),
            since_started: before.started,
            parameters: parameters.collect(),
            contents: Vec::new(),
            added: now.keys().filter(|name| !then.contains_key(*name)).cloned().collect(),
            removed: then.keys().filter(|name| !now.contains_key(*name)).cloned().collect(),
            figures: Vec::new(),
        };
        for (name, stage) in &now {
            let Some(old) = then.get(name) else { continue };
            let digest = |stage: &RunStage| stage.output.map(|output| output.digest);
            if digest(stage).is_some() && digest(old).is_some() && digest(stage) != digest(old) {
                changes.contents.push(name.clone());
            }
            for (figure, value) in &stage.results {
                let Some(old) = old.results.get(figure).filter(|old| old.total_cmp(value).is_ne()) else { continue };
                let new = FigureView::new(&stage.kind, figure, *value);
                changes.figures.push(FigureChange { stage: name.clone(), old: *old, new });
            }
        }
        changes
    }
}

/// The stages of a run by point and name.
pub(crate) fn stages(run: &RunRecord) -> BTreeMap<String, &RunStage> {
    let name = |point: &RunPoint, stage: &RunStage| match point.label.as_str() {
        "" => stage.name.clone(),
        label => format!("{label}/{}", stage.name),
    };
    run.points.iter().flat_map(|point| point.stages.iter().map(move |stage| (name(point, stage), stage))).collect()
}
