//! For tests of stages: runs a stage in a folder, as the runner's child process does, and records its events.
//! Independent of the kind.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;

use crate::{
    Job, Stage, StageError,
    contract::{
        device::Device,
        event::Event,
        figure::Figure,
        input::Input,
        job::{InputFolder, JobSpec, Runtime},
    },
};

/// A stage to run.
pub(crate) struct Trial {
    spec: JobSpec,
    cancel_after: usize,
}

/// The result of running a stage.
pub(crate) struct Outcome {
    pub(crate) out: PathBuf,
    pub(crate) events: Vec<Event>,
    pub(crate) result: Result<(), StageError>,
}

impl Trial {
    /// A stage with work folder `work` and these inputs, which messages call `shown/NAME`.
    pub(crate) fn new(work: &Path, inputs: &[(&str, &Path)]) -> Self {
        let folder = |(name, path): &(&str, &Path)| {
            let input = InputFolder { path: path.to_path_buf(), origin: Path::new("shown").join(name) };
            ((*name).to_string(), input)
        };
        let spec = JobSpec {
            kind: String::new(),
            config: Value::Null,
            runtime: Runtime::default(),
            device: Device::default(),
            workers: 1,
            inputs: inputs.iter().map(folder).collect(),
            sources: BTreeMap::new(),
            work: work.to_path_buf(),
            seed: 42,
        };
        Self { spec, cancel_after: usize::MAX }
    }

    /// Cancels the stage after `reports` progress events.
    pub(crate) fn cancelled_after(mut self, reports: usize) -> Self {
        self.cancel_after = reports;
        self
    }

    /// Sets the number of samples that go through the model at once.
    pub(crate) fn micro_batch(mut self, size: usize) -> Self {
        self.spec.runtime.micro_batch_size = size;
        self
    }

    /// Sets the number of workers.
    pub(crate) fn workers(mut self, workers: usize) -> Self {
        self.spec.workers = workers;
        self
    }

    /// Sets the seed.
    pub(crate) fn seeded(mut self, seed: u64) -> Self {
        self.spec.seed = seed;
        self
    }

    /// Changes settings that can't affect the result.
    pub(crate) fn runtime(mut self, change: impl FnOnce(&mut Runtime)) -> Self {
        change(&mut self.spec.runtime);
        self
    }

    /// A job whose events are dropped.
    pub(crate) fn job(self) -> Job {
        self.job_telling(|_| {})
    }

    /// A job that tells its events.
    pub(crate) fn job_telling(self, sink: impl Fn(Event) + Send + Sync + 'static) -> Job {
        Job::new(self.spec, Box::new(sink), Arc::default())
    }

    /// Runs the stage. Local sources are relative to the parent of the work folder.
    pub(crate) fn run<S: Stage>(mut self, config: &Value) -> Outcome {
        let config: S::Config = serde_json::from_value(config.clone()).unwrap();
        let inputs = self.spec.inputs.keys();
        S::check_inputs(&config, &|name| inputs.clone().filter(|given| Input::is_of(name, given)).count()).unwrap();
        let root = self.spec.work.parent().unwrap().to_path_buf();
        let sources = S::sources(&config).into_iter().map(|written| (written.clone(), root.join(written)));
        self.spec.sources = sources.collect();
        let out = self.spec.work.join("out");
        std::fs::create_dir_all(&out).unwrap();
        std::fs::create_dir_all(self.spec.work.join("checkpoint")).unwrap();
        let (events, cancel) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (seen, flag, limit) = (Arc::clone(&events), Arc::clone(&cancel), self.cancel_after);
        let sink = move |event: Event| {
            let mut seen = seen.lock().unwrap();
            seen.push(event);
            if seen.iter().filter(|event| matches!(event, Event::Progress(_))).count() >= limit {
                flag.store(true, Ordering::Relaxed);
            }
        };
        let result = S::run(&config, &Job::new(self.spec, Box::new(sink), cancel));
        let events = events.lock().unwrap().clone();
        for event in &events {
            if let Event::Result { name, .. } = event {
                assert!(Figure::find(S::FIGURES, name).is_some(), "{} does not declare its figure {name}", S::KIND);
            }
        }
        Outcome { out, events, result }
    }
}

impl Outcome {
    /// The output folder of a stage that must have succeeded.
    pub(crate) fn done(self) -> PathBuf {
        self.result.unwrap();
        self.out
    }

    /// The error of a stage that must have failed.
    pub(crate) fn error(self) -> StageError {
        self.result.unwrap_err()
    }

    /// The final figure called `wanted`.
    pub(crate) fn figure(&self, wanted: &str) -> f64 {
        let figure = self.events.iter().find_map(|event| match event {
            Event::Result { name, value } if name == wanted => Some(*value),
            _ => None,
        });
        figure.unwrap()
    }

    /// The warnings that are kept with the result.
    pub(crate) fn cautions(&self) -> Vec<&str> {
        let texts = self.events.iter().filter_map(|event| match event {
            Event::Caution { message } => Some(message.as_str()),
            _ => None,
        });
        texts.collect()
    }

    /// All warnings, one per line.
    pub(crate) fn warnings(&self) -> String {
        let texts = self.events.iter().filter_map(|event| match event {
            Event::Warning { message } | Event::Caution { message } | Event::Unchecked { message } => {
                Some(message.as_str())
            }
            _ => None,
        });
        texts.collect::<Vec<_>>().join("\n")
    }
}

/// The relative path and content of every file below `folder`.
pub(crate) fn tree(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                files.insert(path.strip_prefix(folder).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}
