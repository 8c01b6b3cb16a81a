//! One stage, from lock to receipt. Unaware of the other stages.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use imp_stages::{
    event::Event,
    job::{InputFolder, JobSpec, Runtime},
};
use tokio::sync::{mpsc, watch};

use crate::{
    executor::{self, Outcome, STARTED, StopSignal},
    machine::Grant,
    store::{Digest, Manifest, Receipt, Store, StoreError, Timing, TreeRef, Work, now},
};

/// What it takes to run a stage.
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) pipeline: String,
    pub(super) stage: String,
    /// Runs though there is a receipt.
    pub(super) forced: bool,
    /// Why it runs, in words.
    pub(super) reason: String,
    /// The key that it had before.
    pub(super) previous: Option<Digest>,
    pub(super) manifest: Manifest,
    pub(super) runtime: Runtime,
    pub(super) inputs: BTreeMap<String, InputFolder>,
    pub(super) sources: BTreeMap<String, PathBuf>,
    pub(super) grant: Grant,
    pub(super) retries: u32,
    pub(super) retry_pause: Duration,
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
    /// It waited for another run, which did not make it: now it is this run's turn, once the machine has room.
    Again,
    Failed {
        message: String,
        help: Option<String>,
        log: Option<PathBuf>,
        /// The last lines of the log.
        tail: Vec<String>,
    },
}

/// What a step says while it runs.
pub(super) enum StepEvent {
    /// Another run holds the lock.
    Waiting,
    /// The process was started.
    Running { resumed: bool },
    /// It failed in a way that may be over in so many seconds.
    Retrying { message: String, seconds: f64 },
    /// The stage said so.
    Stage(Event),
}

/// Runs the step: lock, look again, execute, take in, write the receipt.
pub(super) async fn run(
    step: Step,
    store: Store,
    stop: watch::Receiver<StopSignal>,
    say: mpsc::UnboundedSender<(usize, StepEvent)>,
) -> (usize, StepEnd) {
    let index = step.index;
    let key = step.manifest.key();
    let end = match make(&step, &store, stop, &say).await {
        Ok(end) => end,
        Err(error) => failed(error.to_string(), remedy(&error)),
    };
    let work = store.work(key);
    let path = work.log();
    match end {
        StepEnd::Failed { message, help, .. } if path.exists() => {
            work.note_failure(&message);
            let tail = last_lines(&path, &message);
            (index, StepEnd::Failed { message, help, log: Some(path), tail })
        }
        end => (index, end),
    }
}

fn failed(message: String, help: Option<String>) -> StepEnd {
    StepEnd::Failed { message, help, log: None, tail: Vec::new() }
}

/// What a person reads first of a failed stage's log, but for what `message` says already.
fn last_lines(log: &Path, message: &str) -> Vec<String> {
    const LINES: usize = 8;
    const BYTES: u64 = 8192;
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    // The log goes on over several tries: only the last one matters.
    let last_try = text.rfind(STARTED).map_or(text.as_str(), |at| &text[at + STARTED.len()..]);
    let said = message.lines().next().unwrap_or_default();
    let repeats = |line: &str| line.ends_with(&format!(": {said}")) || message.lines().any(|part| part == line);
    let is_new = |line: &&str| !line.is_empty() && !repeats(line);
    let lines: Vec<&str> = last_try.lines().skip(1).filter(is_new).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(ToString::to_string).collect()
}

async fn make(
    step: &Step,
    store: &Store,
    mut stop: watch::Receiver<StopSignal>,
    say: &mpsc::UnboundedSender<(usize, StepEvent)>,
) -> Result<StepEnd, StoreError> {
    let key = step.manifest.key();
    // The receiver lives as long as the run: a failing send has nobody to tell.
    let tell = |said| drop(say.send((step.index, said)));
    let mut waited = false;
    let waiting = || {
        waited = true;
        tell(StepEvent::Waiting);
    };
    let _lock = tokio::select! {
        lock = store.lock(key, waiting) => lock?,
        _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok(StepEnd::Cancelled),
    };
    if !step.forced
        && let Some(receipt) = store.receipt(key)?
        && store.tree_folder(receipt.output.digest)?.is_some()
    {
        return Ok(StepEnd::Done { receipt: Box::new(receipt), ran: false });
    }
    if waited {
        // While it waited, others had what it needs of the machine.
        return Ok(StepEnd::Again);
    }
    let work = store.work(key);
    let resumed = work.has_checkpoint();
    write_job(step, &work)?;
    work.forget_failure();
    tell(StepEvent::Running { resumed });

    let start = Instant::now();
    let (outcome, said) = execute(step, &work, &mut stop, &tell).await?;
    match outcome {
        Outcome::Cancelled => return Ok(StepEnd::Cancelled),
        Outcome::Failed { message, help, .. } => return Ok(failed(message, help)),
        Outcome::Done => {}
    }
    let receipt = Receipt {
        output: TreeRef::default(),
        log: None,
        metrics: None,
        events: None,
        manifest: step.manifest.clone(),
        results: said.results,
        peak_memory: said.peak_memory,
        pipeline: step.pipeline.clone(),
        stage: step.stage.clone(),
        reason: step.reason.clone(),
        previous: step.previous,
        timing: Timing { finished: now() as u64, seconds: start.elapsed().as_secs_f64() },
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        made_by: env!("CARGO_PKG_VERSION").into(),
    };
    let store = store.clone();
    let receipt = tokio::task::spawn_blocking(move || keep(&store, key, receipt))
        .await
        .map_err(|error| StoreError::Refused { path: step.stage.clone().into(), what: error.to_string() })??;
    Ok(StepEnd::Done { receipt: Box::new(receipt), ran: true })
}

/// What a stage said that its receipt keeps.
#[derive(Default)]
struct Kept {
    results: BTreeMap<String, f64>,
    peak_memory: Option<u64>,
}

/// How often others can see how far a stage is.
const TELL: Duration = Duration::from_millis(500);

/// Runs the stage's process, again after a pause where its failure may be over by then.
async fn execute(
    step: &Step,
    work: &Work,
    stop: &mut watch::Receiver<StopSignal>,
    tell: &impl Fn(StepEvent),
) -> Result<(Outcome, Kept), StoreError> {
    let (mut tries, mut told) = (0, None::<Instant>);
    loop {
        let mut kept = Kept::default();
        let listen = |event| {
            match &event {
                Event::Result { name, value } => drop(kept.results.insert(name.clone(), *value)),
                Event::PeakMemory { bytes } => kept.peak_memory = Some(*bytes),
                Event::Progress(progress) if told.is_none_or(|at| at.elapsed() > TELL) => {
                    told = Some(Instant::now());
                    work.note_progress(progress);
                }
                _ => {}
            }
            tell(StepEvent::Stage(event));
        };
        let outcome = executor::run(work.path(), &step.grant, &step.environment, stop.clone(), listen)
            .await
            .map_err(StoreError::io(work.path()))?;
        let message = match &outcome {
            Outcome::Failed { message, transient: true, .. } if tries < step.retries => message.clone(),
            _ => return Ok((outcome, kept)),
        };
        // Longer each time: what is not over after a moment may be over after minutes.
        let pause = step.retry_pause * 4_u32.saturating_pow(tries);
        tries += 1;
        tell(StepEvent::Retrying { message, seconds: pause.as_secs_f64() });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok((Outcome::Cancelled, kept)),
        }
    }
}

/// Takes what the stage made into the store. The receipt comes last: it is the proof that the rest is there.
fn keep(store: &Store, key: Digest, receipt: Receipt) -> Result<Receipt, StoreError> {
    let work = store.work(key);
    // Objects that no receipt names yet are not to be thrown away.
    let _guard = store.guard()?;
    let receipt = Receipt {
        output: store.take_in(&work.out())?,
        log: store.keep_file(&work.log())?,
        metrics: store.keep_file(&work.metrics())?,
        events: store.keep_file(&work.events())?,
        ..receipt
    };
    store.write_receipt(&receipt)?;
    work.clear()?;
    Ok(receipt)
}

fn write_job(step: &Step, work: &Work) -> Result<(), StoreError> {
    let job = JobSpec {
        kind: step.manifest.kind.clone(),
        config: step.manifest.config.clone(),
        runtime: step.runtime.clone(),
        inputs: step.inputs.clone(),
        sources: step.sources.clone(),
        work: work.path().to_path_buf(),
        seed: step.manifest.seed,
    };
    work.create().map_err(StoreError::io(work.path()))?;
    let path = work.job();
    let text = serde_json::to_vec_pretty(&job)
        .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
    std::fs::write(&path, text).map_err(StoreError::io(&path))
}

fn remedy(error: &StoreError) -> Option<String> {
    match error {
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            Some(imp_stages::error::DISK_FULL.into())
        }
        StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            Some("make the cache folder writable, or use another with --cache".into())
        }
        _ => None,
    }
}
