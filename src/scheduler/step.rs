//! One stage, from lock to receipt. Unaware of the other stages.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use imp_stages::{
    event::Event,
    job::{EVENTS, InputFolder, JobSpec, Runtime},
};
use tokio::sync::{mpsc, watch};

use crate::{
    executor::{self, Outcome, Wish},
    store::{Manifest, Receipt, Store, StoreError, Timing},
};

/// What it takes to run a stage.
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) pipeline: String,
    pub(super) stage: String,
    pub(super) manifest: Manifest,
    pub(super) runtime: Runtime,
    pub(super) inputs: BTreeMap<String, InputFolder>,
    pub(super) sources: BTreeMap<String, PathBuf>,
    pub(super) cpus: usize,
    pub(super) environment: Vec<(&'static str, String)>,
}

/// How it went.
pub(super) enum StepEnd {
    /// It ran, or another run made it meanwhile.
    Done {
        receipt: Box<Receipt>,
        ran: bool,
    },
    Cancelled,
    Failed {
        message: String,
        help: Option<String>,
        log: Option<PathBuf>,
    },
}

/// What a step says while it runs.
pub(super) enum Said {
    /// Another run holds the lock.
    Waiting,
    /// The process was started.
    Running { resumed: bool },
    /// The stage said so.
    Stage(Event),
}

/// Runs the step: lock, look again, execute, take in, write the receipt.
pub(super) async fn run(
    step: Step,
    store: Store,
    wish: watch::Receiver<Wish>,
    say: mpsc::UnboundedSender<(usize, Said)>,
) -> (usize, StepEnd) {
    let index = step.index;
    let key = step.manifest.key();
    let end = match make(&step, &store, wish, &say).await {
        Ok(end) => end,
        Err(error) => StepEnd::Failed { message: error.to_string(), help: remedy(&error), log: None },
    };
    let log = store.work(key).join("log");
    match end {
        StepEnd::Failed { message, help, log: None } if log.exists() => {
            (index, StepEnd::Failed { message, help, log: Some(log) })
        }
        end => (index, end),
    }
}

async fn make(
    step: &Step,
    store: &Store,
    mut wish: watch::Receiver<Wish>,
    say: &mpsc::UnboundedSender<(usize, Said)>,
) -> Result<StepEnd, StoreError> {
    let key = step.manifest.key();
    // The receiver lives as long as the run: a failing send has nobody to tell.
    let tell = |said| drop(say.send((step.index, said)));
    let _lock = tokio::select! {
        lock = store.lock(key, || tell(Said::Waiting)) => lock?,
        _ = wish.wait_for(|wish| *wish != Wish::GoOn) => return Ok(StepEnd::Cancelled),
    };
    if let Some(receipt) = store.receipt(key)?
        && store.tree_folder(receipt.output.digest)?.is_some()
    {
        return Ok(StepEnd::Done { receipt: Box::new(receipt), ran: false });
    }
    let work = store.work(key);
    let resumed = store.has_checkpoint(key);
    write_job(step, &work)?;
    tell(Said::Running { resumed });

    let start = Instant::now();
    let (mut results, mut peak_memory) = (BTreeMap::new(), None);
    let outcome = executor::run(&work, step.cpus, &step.environment, wish, |event| {
        match &event {
            Event::Result { name, value } => drop(results.insert(name.clone(), *value)),
            Event::PeakMemory { bytes } => peak_memory = Some(*bytes),
            _ => {}
        }
        tell(Said::Stage(event));
    })
    .await
    .map_err(StoreError::io(&work))?;
    match outcome {
        Outcome::Cancelled => return Ok(StepEnd::Cancelled),
        Outcome::Failed { message, help } => return Ok(StepEnd::Failed { message, help, log: None }),
        Outcome::Done => {}
    }
    let (store, manifest) = (store.clone(), step.manifest.clone());
    let (pipeline, stage, seconds) = (step.pipeline.clone(), step.stage.clone(), start.elapsed().as_secs_f64());
    let receipt = tokio::task::spawn_blocking(move || -> Result<Receipt, StoreError> {
        let receipt = Receipt {
            output: store.take_in(&work.join("out"))?,
            log: store.keep_file(&work.join("log"))?,
            metrics: store.keep_file(&work.join("metrics.jsonl"))?,
            events: store.keep_file(&work.join(EVENTS))?,
            manifest,
            results,
            peak_memory,
            pipeline,
            stage,
            timing: Timing { finished: now(), seconds },
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            made_by: env!("CARGO_PKG_VERSION").into(),
        };
        store.write_receipt(&receipt)?;
        store.clear_work(key)?;
        Ok(receipt)
    })
    .await
    .map_err(|error| StoreError::Refused { path: step.stage.clone().into(), what: error.to_string() })??;
    Ok(StepEnd::Done { receipt: Box::new(receipt), ran: true })
}

fn write_job(step: &Step, work: &std::path::Path) -> Result<(), StoreError> {
    let job = JobSpec {
        kind: step.manifest.kind.clone(),
        config: step.manifest.config.clone(),
        runtime: step.runtime.clone(),
        inputs: step.inputs.clone(),
        sources: step.sources.clone(),
        work: work.to_path_buf(),
        seed: step.manifest.seed,
    };
    std::fs::create_dir_all(work).map_err(StoreError::io(work))?;
    let path = work.join("job.json");
    let text = serde_json::to_vec_pretty(&job)
        .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
    std::fs::write(&path, text).map_err(StoreError::io(&path))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

fn remedy(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some("make room on the disk, then run the same command again: nothing is lost".into())
        }
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("make the cache folder writable, or use another with --cache".into())
        }
        _ => None,
    }
}
