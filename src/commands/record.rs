//! The record of a run: created when the first stage starts, updated while the run continues, completed when it ends. A run that
//! finds everything cached, as in the last run, leaves no record.

use std::{
    cell::{Cell, OnceCell},
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc::Receiver,
    time::{Duration, Instant},
};

use super::{origin, session::Session};
use crate::{
    scheduler::{RunEvent, StageEnd, Summary},
    store::{Digest, Hit, Origin, RunPoint, RunRecord, RunStage, RunState, StageState, now},
};

/// The shortest time between two updates of the record.
const INTERVAL: Duration = Duration::from_secs(2);

pub(super) struct Recorder<'a> {
    session: &'a Session,
    id: String,
    name: Option<String>,
    /// Seconds since 1970.
    started_at: f64,
    /// What it is started with: the answer, and what it was.
    asked: OnceCell<Receiver<Origin>>,
    origin: OnceCell<Origin>,
    /// Its number, once it is recorded.
    number: Cell<Option<u64>>,
    /// Finished stages by index: whether they ran, and their results.
    done: BTreeMap<usize, (bool, Hit)>,
    /// Stages that were started, by name.
    started: BTreeMap<String, Started>,
    /// How often a stage has begun or ended.
    changes: usize,
    /// When the record was last written, and how many changes it has.
    written: Option<(Instant, usize)>,
}

/// What is known of a stage that was started. Times are in seconds since the run's start.
#[derive(Default)]
struct Started {
    began: f64,
    ended: Option<f64>,
    failure: Option<String>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(session: &'a Session, name: Option<String>) -> Self {
        Self {
            session,
            id: new_id(),
            name,
            started_at: now(),
            asked: OnceCell::new(),
            origin: OnceCell::new(),
            number: Cell::new(None),
            done: BTreeMap::new(),
            started: BTreeMap::new(),
            changes: 0,
            written: None,
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Adds an event to the record.
    pub(super) fn on(&mut self, event: &RunEvent<'_>) {
        self.note_times(event);
        let is_change = matches!(
            event,
            RunEvent::Running { .. }
                | RunEvent::Hit { .. }
                | RunEvent::Finished { .. }
                | RunEvent::Failed { .. }
                | RunEvent::Cancelled { .. }
        );
        self.changes += usize::from(is_change);
        match event {
            RunEvent::Hit { index, hit, .. } => drop(self.done.insert(*index, (false, (*hit).clone()))),
            RunEvent::Finished { index, hit, .. } => drop(self.done.insert(*index, (true, (*hit).clone()))),
            _ => {}
        }
        let due = match self.written {
            None => matches!(event, RunEvent::Running { .. }),
            // Every event counts, so that the progress of a long stage also triggers an update.
            Some((at, known)) => known < self.changes && at.elapsed() > INTERVAL,
        };
        if due {
            let seconds = now() - self.started_at;
            self.write(self.record(RunState::Running, seconds, self.points(|_| StageState::NotStarted)));
            self.written = Some((Instant::now(), self.changes));
        }
    }

    fn note_times(&mut self, event: &RunEvent<'_>) {
        let at = now() - self.started_at;
        match event {
            // A stage that is tried again began with its first try.
            RunEvent::Running { stage, .. } => {
                let began = Started { began: at, ..Started::default() };
                self.started.entry((*stage).into()).or_insert(began);
            }
            RunEvent::Finished { stage, .. } | RunEvent::Cancelled { stage } => self.end(stage, at, None),
            RunEvent::Failed { stage, message, .. } => self.end(stage, at, Some((*message).into())),
            _ => {}
        }
    }

    fn end(&mut self, stage: &str, at: f64, failure: Option<String>) {
        // What could not even be started has failed, too.
        let started = self.started.entry(stage.into()).or_insert(Started { began: at, ..Started::default() });
        (started.ended, started.failure) = (Some(at), failure);
    }

    /// Completes the record. Returns it if something is new since the last run.
    pub(super) fn finish(&self, summary: &Summary) -> Option<RunRecord> {
        let index = &self.session.index;
        let id =
            if self.session.request.sweep { format!("{}\0sweep", summary.pipeline) } else { summary.pipeline.clone() };
        let keys: Vec<u8> = summary.stages.iter().filter_map(|stage| stage.key).flat_map(Digest::bytes).collect();
        let content = Digest::of(&keys);
        let known = self.session.artifacts.has_record() && index.last_run(&id) == Some(content);
        if self.written.is_none() && self.name.is_none() && known {
            return None;
        }
        if let Err(error) = self.session.artifacts.record(summary) {
            tracing::warn!(
                "could not write the summary of this run to {}: {error}",
                self.session.artifacts.folder().display()
            );
        }
        let ends: BTreeMap<usize, &StageEnd> = summary.stages.iter().map(|end| (end.index, end)).collect();
        let points = self.points(|index| ends.get(&index).map_or(StageState::NotStarted, |end| end.state));
        let record = self.write(self.record(summary.ending.into(), summary.seconds, points));
        index.set_last_run(&id, content);
        index.save();
        Some(record)
    }

    /// All stages of all points. `state` returns the state of a stage that is not done.
    fn points(&self, state: impl Fn(usize) -> StageState) -> Vec<RunPoint> {
        let pipeline = &self.session.pipeline;
        let point = |point: &crate::pipeline::Point| RunPoint {
            label: point.label.clone(),
            values: point.values.clone(),
            stages: Vec::new(),
        };
        let mut points: Vec<RunPoint> = pipeline.points.iter().map(point).collect();
        for index in self.session.graph.order() {
            let (stage, done) = (&pipeline.stages[*index], self.done.get(index));
            let started = self.started.get(&stage.name);
            let (ran, hit) = done.map_or((false, None), |(ran, hit)| (*ran, Some(hit)));
            for (point, name) in &stage.owners {
                points[*point].stages.push(RunStage {
                    name: name.clone(),
                    kind: stage.kind.into(),
                    state: match hit {
                        None => state(*index),
                        Some(_) if ran => StageState::Ran,
                        Some(_) => StageState::Cached,
                    },
                    key: hit.map(|hit| hit.key),
                    output: hit.map(|hit| hit.output),
                    seconds: hit.map(|hit| hit.seconds),
                    results: hit.map(|hit| hit.results.clone()).unwrap_or_default(),
                    began: started.map(|started| started.began),
                    ended: started.and_then(|started| started.ended),
                    failure: started.and_then(|started| started.failure.clone()),
                });
            }
        }
        points
    }

    fn record(&self, ending: RunState, seconds: f64, points: Vec<RunPoint>) -> RunRecord {
        let Session { request, pipeline, document, .. } = self.session;
        RunRecord {
            id: self.id.clone(),
            name: self.name.clone(),
            pipeline: pipeline.name.clone(),
            file: std::path::absolute(&request.file).unwrap_or_else(|_| request.file.clone()),
            overrides: request.overrides.clone(),
            sweep: request.sweep,
            number: self.number.get().unwrap_or_default(),
            started: self.started_at,
            seconds,
            ending,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            made_by: env!("CARGO_PKG_VERSION").into(),
            origin: self.origin(&request.file, ending != RunState::Running),
            document: document.to_toml(),
            sources: self.sources(),
            points,
        }
    }

    /// Asked when the first stage has started, and waited for only when the run is over.
    fn origin(&self, file: &Path, is_over: bool) -> Option<Origin> {
        let asked = self.asked.get_or_init(|| origin::ask(file.parent().unwrap_or(file)));
        if self.origin.get().is_none() {
            let found = if is_over { asked.recv().ok() } else { asked.try_recv().ok() };
            if let Some(found) = found {
                let _ = self.origin.set(found);
            }
        }
        self.origin.get().cloned()
    }

    /// The user's files by stage. In different points, a stage of the same name may have different files.
    fn sources(&self) -> BTreeMap<String, BTreeMap<String, PathBuf>> {
        let mut sources = BTreeMap::<String, BTreeMap<String, PathBuf>>::new();
        for stage in self.session.pipeline.stages.iter().filter(|stage| !stage.sources.is_empty()) {
            sources.entry(stage.owners[0].1.clone()).or_default().extend(stage.sources.clone());
        }
        sources
    }

    /// Writes the record. Returns it with its number.
    fn write(&self, mut record: RunRecord) -> RunRecord {
        let store = &self.session.store;
        let written = match self.number.get() {
            Some(number) => Ok(number),
            None => store.next_run(),
        };
        let written = written.and_then(|number| {
            self.number.set(Some(number));
            record.number = number;
            store.write_run(&record)
        });
        match written {
            // Reading someone else's cache leaves no trace in it.
            Err(error) if error.is_read_only() => tracing::debug!("no record of this run: {error}"),
            Err(error) => tracing::warn!("could not write the record of this run: {error}"),
            Ok(()) => {}
        }
        record
    }
}

/// `20261125-0042-3fa1b2`: the time, so that identifiers sort by age, and a unique suffix.
fn new_id() -> String {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M").to_string();
    let unique = format!("{:?} {}", std::time::SystemTime::now(), std::process::id());
    format!("{stamp}-{}", &Digest::of(unique.as_bytes()).hex()[..6])
}
