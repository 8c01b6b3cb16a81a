//! Keeps the record of a run: begun when the first stage starts, finished when the run ends. A run in which everything was
//! as before leaves no new one.

use super::place::Workplace;
use crate::{
    scheduler::{RunEvent, StageEnd, Summary},
    store::{Digest, RunPoint, RunRecord, RunStage, now},
};

pub(super) struct Recorder<'a> {
    place: &'a Workplace,
    id: String,
    name: Option<String>,
    started: f64,
    begun: bool,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(place: &'a Workplace, name: Option<String>) -> Self {
        Self { place, id: new_id(), name, started: now(), begun: false }
    }

    /// Called for everything that happens.
    pub(super) fn on(&mut self, event: &RunEvent<'_>) {
        if !self.begun && matches!(event, RunEvent::Running { .. }) {
            self.begun = true;
            self.write(&self.record("running", 0.0, Vec::new()));
        }
    }

    /// The run has ended.
    pub(super) fn finish(&self, summary: &Summary) {
        let index = &self.place.index;
        let id = if self.place.asked.sweep { format!("{}\0sweep", summary.pipeline) } else { summary.pipeline.clone() };
        let keys: Vec<u8> = summary.stages.iter().filter_map(|stage| stage.key).flat_map(Digest::bytes).collect();
        let content = Digest::of(&keys);
        if !self.begun && self.name.is_none() && index.last_run(&id) == Some(content) {
            return;
        }
        if let Err(error) = self.place.artifacts.record(summary) {
            tracing::warn!("no record of this run under {}: {error}", self.place.artifacts.folder().display());
        }
        let mut points: Vec<RunPoint> = self.place.pipeline.points.iter().map(RunPoint::of).collect();
        for end in &summary.stages {
            for (point, name) in &self.place.pipeline.stages[end.index].owners {
                points[*point].stages.push(run_stage(name, end));
            }
        }
        self.write(&self.record(summary.ending.word(), summary.seconds, points));
        index.set_last_run(&id, content);
        index.save();
    }

    fn record(&self, ending: &str, seconds: f64, points: Vec<RunPoint>) -> RunRecord {
        let Workplace { asked, pipeline, document, .. } = self.place;
        RunRecord {
            id: self.id.clone(),
            name: self.name.clone(),
            pipeline: pipeline.name.clone(),
            file: std::path::absolute(&asked.file).unwrap_or_else(|_| asked.file.clone()),
            overrides: asked.overrides.clone(),
            sweep: asked.sweep,
            started: self.started,
            seconds,
            ending: ending.into(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            made_by: env!("CARGO_PKG_VERSION").into(),
            document: document.to_toml(),
            sources: pipeline.stages.iter().flat_map(|stage| stage.sources.clone()).collect(),
            points,
        }
    }

    fn write(&self, record: &RunRecord) {
        if let Err(error) = self.place.store.write_run(record) {
            tracing::warn!("this run is not recorded: {error}");
        }
    }
}

impl RunPoint {
    fn of(point: &crate::pipeline::Point) -> Self {
        Self { label: point.label.clone(), values: point.values.clone(), stages: Vec::new() }
    }
}

fn run_stage(name: &str, end: &StageEnd) -> RunStage {
    RunStage {
        name: name.into(),
        kind: end.kind.to_string(),
        state: end.state.to_string(),
        key: end.key,
        output: end.output,
        seconds: end.seconds,
        results: end.results.clone(),
    }
}

/// `20261125-0042-3fa`: the time, so that ids sort and say something, and a little that no other run has.
fn new_id() -> String {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M").to_string();
    let own = format!("{:?} {}", std::time::SystemTime::now(), std::process::id());
    format!("{stamp}-{}", &Digest::of(own.as_bytes()).hex()[..3])
}
