//! A stage of a run.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::{
    contract::{
        event::Progress,
        figure::{Better, Role},
        job::Runtime,
        secret::hide_secrets,
    },
    kinds::figure,
};
use serde::Serialize;

use super::{
    Limits,
    curve::{self, Curve},
    kinds::besides_defaults,
    log::{self, LogView},
    scale,
};
use crate::{
    pipeline::StageDecl,
    store::{Digest, Manifest, Receipt, RunStage, RunState, StageState, Store, Work},
};

/// A stage of a run.
#[derive(Debug, Serialize)]
pub(crate) struct StageView {
    /// Its name in the whole pipeline; in a sweep, that of a stage which not all points share has its point before it.
    pub(crate) name: String,
    pub(crate) kind: String,
    /// As in the record of the run; `running` or `killed` for a stage that had not ended when the record was last written.
    pub(crate) state: String,
    /// The points that it belongs to, by index, and its name in them.
    pub(crate) points: Vec<(usize, String)>,
    /// Input -> index of the stage that it comes from.
    pub(crate) inputs: BTreeMap<String, usize>,
    pub(crate) seed: u64,
    /// Keys whose values are not the defaults of the kind, as JSON.
    pub(crate) config: BTreeMap<String, String>,
    /// Keys with a default that this result lacks: those of tables that were not given, and of another version of imp-flow.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lacking: Vec<String>,
    /// Settings without effect on the result that are not the defaults, as JSON.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    runtime: BTreeMap<String, String>,
    /// When it began and ended in this run, in seconds since the run's start. `None` if it did not run.
    began: Option<f64>,
    ended: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    /// How far it has come, if it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<ProgressView>,
    /// What it produced, in this run or before. `None` if there is no result.
    pub(crate) result: Option<ResultView>,
    /// The end of its log, or of the log of its unfinished attempt.
    log: LogView,
    pub(crate) curves: Vec<Curve>,
    #[serde(skip)]
    files: Files,
}

/// How far a stage has come.
#[derive(Debug, Serialize)]
struct ProgressView {
    /// Units done, and in total; a total of 0 is not known.
    done: u64,
    total: u64,
    /// In the plural.
    unit: String,
}

/// What a stage produced, and how.
#[derive(Debug, Serialize)]
pub(crate) struct ResultView {
    key: Digest,
    /// The version of the kind, and of imp-flow.
    version: u32,
    made_by: String,
    /// The pipeline and the stage for which it ran.
    made_for: (String, String),
    /// Why it ran.
    reason: String,
    /// When it finished, in seconds since 1970.
    finished: u64,
    /// How long it took, in seconds: all sessions of a stage that was resumed together.
    seconds: f64,
    /// How many sessions that were.
    sessions: u32,
    peak_memory: Option<u64>,
    host: String,
    /// What it computed on, if it computed.
    environment: Option<String>,
    cautions: Vec<String>,
    pub(crate) figures: Vec<FigureView>,
    /// Input -> digest of its content.
    inputs: BTreeMap<String, Digest>,
    output: OutputView,
}

/// A figure of a stage.
#[derive(Debug, Serialize)]
pub(crate) struct FigureView {
    pub(crate) name: String,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// `higher`, `lower` or `neither`.
    pub(crate) better: &'static str,
    pub(crate) headline: bool,
}

/// The output of a stage.
#[derive(Debug, Serialize)]
struct OutputView {
    digest: Digest,
    bytes: u64,
    /// The number of files. `largest` may list fewer.
    files: u64,
    /// The largest files: path and size.
    largest: Vec<(String, u64)>,
}

/// Where the long parts are.
#[derive(Debug, Default)]
struct Files {
    log: Option<PathBuf>,
    metrics: Option<PathBuf>,
    tree: Option<Digest>,
}

impl FigureView {
    pub(super) fn new(kind: &str, name: &str, value: f64) -> Self {
        let known = figure(kind, name);
        Self {
            name: name.into(),
            value,
            unit: known.map_or("", |figure| figure.unit),
            better: match known.map_or(Better::Neither, |figure| figure.better) {
                Better::Higher => "higher",
                Better::Lower => "lower",
                Better::Neither => "neither",
            },
            headline: known.is_some_and(|figure| figure.role == Role::Headline),
        }
    }
}

impl StageView {
    /// A stage with what the record and the receipt say. `attempt` is the key of an attempt that has not ended well.
    pub(super) fn new(
        stage: &StageDecl,
        run: RunState,
        recorded: Option<&RunStage>,
        receipt: Option<&Receipt>,
        attempt: Option<Digest>,
        store: &Store,
    ) -> Self {
        let manifest = receipt.map(|receipt| &receipt.manifest);
        let (config, lacking) = besides_defaults(stage.kind, config_of(stage, manifest));
        let work = attempt.map(|key| store.work(key));
        let object = |digest: Option<Digest>| digest.map(|digest| store.object(digest));
        let files = Files {
            log: work.as_ref().map(Work::log).or(object(receipt.and_then(|receipt| receipt.log))),
            metrics: work.as_ref().map(Work::metrics).or(object(receipt.and_then(|found| found.metrics))),
            tree: receipt.map(|receipt| receipt.output.digest),
        };
        let state = state_of(recorded, run);
        let progress = work.as_ref().filter(|_| state == RunState::Running.to_string()).and_then(Work::progress);
        Self {
            name: stage.name.clone(),
            kind: stage.kind.into(),
            state,
            points: stage.owners.clone(),
            inputs: stage.inputs.clone(),
            seed: manifest.map_or(stage.seed, |manifest| manifest.seed),
            config,
            // What has no receipt has the defaults of this version.
            lacking: if receipt.is_some() { lacking } else { Vec::new() },
            runtime: besides_default_runtime(&stage.runtime),
            began: recorded.and_then(|recorded| recorded.began),
            ended: recorded.and_then(|recorded| recorded.ended),
            failure: recorded.and_then(|recorded| recorded.failure.clone()),
            progress: progress.map(|Progress { done, total, unit, .. }| ProgressView { done, total, unit }),
            result: receipt.map(ResultView::new),
            log: LogView::default(),
            curves: Vec::new(),
            files,
        }
    }

    /// Whether it may have curves.
    pub(super) fn has_metrics(&self) -> bool {
        self.files.metrics.as_ref().is_some_and(|path| path.is_file())
    }

    /// Reads what is long. What can't be read, as after `cache gc`, is left out.
    pub(super) fn fill(&mut self, store: &Store, limits: Limits) {
        if let Some(log) = self.files.log.as_deref().and_then(|path| log::tail(path, limits.log).ok()) {
            self.log = LogView { tail: hide_secrets(&log.tail).into_owned(), ..log };
        }
        if let Some(curves) = self.files.metrics.as_deref().and_then(|path| curve::read(path, limits.points).ok()) {
            self.curves = curves;
        }
        let Some(result) = &mut self.result else { return };
        let Some(mut files) = self.files.tree.and_then(|tree| store.tree(tree).ok()) else { return };
        files.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.path.cmp(&b.path)));
        result.output.largest = files.into_iter().take(limits.files).map(|file| (file.path, file.size)).collect();
    }
}

/// Whether a stage was started and has no result: it failed, was stopped or killed, or still runs.
pub(crate) fn is_open(stage: &RunStage) -> bool {
    match stage.state {
        StageState::Failed | StageState::Stopped => true,
        StageState::NotStarted => stage.began.is_some(),
        _ => false,
    }
}

fn state_of(recorded: Option<&RunStage>, run: RunState) -> String {
    match recorded {
        None => StageState::NotStarted.to_string(),
        Some(stage) if stage.state == StageState::NotStarted && is_open(stage) => match run {
            RunState::Running => RunState::Running.to_string(),
            _ => RunState::Killed.to_string(),
        },
        Some(stage) => stage.state.to_string(),
    }
}

/// The configuration as dotted keys: that of the result, or the declared one.
fn config_of(stage: &StageDecl, manifest: Option<&Manifest>) -> BTreeMap<String, String> {
    let declared = || Manifest {
        kind: stage.kind.into(),
        version: stage.version,
        seed: stage.seed,
        config: stage.config.clone(),
        sources: BTreeMap::new(),
        inputs: BTreeMap::new(),
    };
    let fields = manifest.map_or_else(|| declared().config_fields(), Manifest::config_fields);
    fields.into_iter().map(|(name, value)| (name, hide_secrets(&value).into_owned())).collect()
}

fn besides_default_runtime(runtime: &Runtime) -> BTreeMap<String, String> {
    let table = |runtime: &Runtime| match serde_json::to_value(runtime) {
        Ok(serde_json::Value::Object(table)) => table,
        _ => serde_json::Map::new(),
    };
    let defaults = table(&Runtime::default());
    let others = table(runtime).into_iter().filter(|(name, value)| defaults.get(name) != Some(value));
    others.map(|(name, value)| (name, value.to_string())).collect()
}

impl ResultView {
    fn new(receipt: &Receipt) -> Self {
        let manifest = &receipt.manifest;
        let figures = scale::figures(receipt);
        let figures = figures.iter().map(|(name, value)| FigureView::new(&manifest.kind, name, *value));
        Self {
            key: receipt.key(),
            version: manifest.version,
            made_by: receipt.made_by.clone(),
            made_for: (receipt.pipeline.clone(), receipt.stage.clone()),
            reason: receipt.reason.clone(),
            finished: receipt.timing.finished,
            seconds: receipt.timing.seconds,
            sessions: receipt.timing.sessions,
            peak_memory: receipt.peak_memory,
            host: receipt.host.clone(),
            environment: receipt.environment.as_ref().map(ToString::to_string),
            cautions: receipt.cautions.clone(),
            figures: figures.collect(),
            inputs: manifest.inputs.clone(),
            output: OutputView {
                digest: receipt.output.digest,
                bytes: receipt.output.bytes,
                files: receipt.output.files,
                largest: Vec::new(),
            },
        }
    }
}
