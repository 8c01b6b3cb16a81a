//! One stage, from lock to receipt. Independent of the other stages.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use imp_stages::contract::{event::Event, job::JobSpec};
use tokio::sync::{mpsc, watch};

use super::{SchedulerError, found::Found};
use crate::{
    executor::{self, Outcome, STARTED, StopSignal},
    machine::Grant,
    store::{Digest, Hit, Product, Provenance, Receipt, Store, StoreError, Timing, Work, now},
};

/// What it takes to run a stage.
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) key: Digest,
    /// Runs although it is cached.
    pub(super) forced: bool,
    pub(super) job: JobSpec,
    pub(super) provenance: Provenance,
    pub(super) grant: Grant,
    pub(super) retry: Retry,
    pub(super) environment: Vec<(&'static str, String)>,
}

/// How often a stage is run again after a transient failure, and how long to wait before the first time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) times: u32,
    pub(crate) pause: Duration,
}

/// How a step ended.
pub(super) enum StepEnd {
    Ran(Box<Receipt>),
    /// Another run made the artifact meanwhile.
    Found(Box<Hit>),
    Cancelled,
    /// It waited for another run that did not make the artifact: it is this run's turn, once the machine has room.
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
    /// It failed in a way that may pass; it is tried again in this many seconds.
    Retrying { message: String, seconds: f64 },
    /// An event of the stage itself.
    Stage(Event),
}

/// Runs the step: takes the lock, looks again, executes, takes the output in, writes the receipt.
pub(super) async fn run(
    step: Step,
    store: Store,
    stop: watch::Receiver<StopSignal>,
    say: mpsc::UnboundedSender<(usize, StepEvent)>,
) -> (usize, StepEnd) {
    let (index, key) = (step.index, step.key);
    let end = match make(step, &store, stop, &say).await {
        Ok(end) => end,
        Err(error) => failed(error.to_string(), error.remedy().map(Into::into)),
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

/// The end of a failed stage's log, without what `message` already says.
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
    // The log covers several tries: only the last one matters.
    let last_try = text.rfind(STARTED).map_or(text.as_str(), |at| &text[at + STARTED.len()..]);
    let said = message.lines().next().unwrap_or_default();
    let repeats = |line: &str| line.ends_with(&format!(": {said}")) || message.lines().any(|part| part == line);
    let is_new = |line: &&str| !line.is_empty() && !repeats(line);
    let lines: Vec<&str> = last_try.lines().skip(1).filter(is_new).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(ToString::to_string).collect()
}

async fn make(
    step: Step,
    store: &Store,
    mut stop: watch::Receiver<StopSignal>,
    say: &mpsc::UnboundedSender<(usize, StepEvent)>,
) -> Result<StepEnd, SchedulerError> {
    let (index, key) = (step.index, step.key);
    // The receiver lives as long as the run: a failing send has nobody to tell.
    let tell = |said| drop(say.send((index, said)));
    let mut waited = false;
    let waiting = || {
        waited = true;
        tell(StepEvent::Waiting);
    };
    let _lock = tokio::select! {
        lock = store.lock(key, waiting) => lock?,
        _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok(StepEnd::Cancelled),
    };
    if let Found::Hit(hit, _) = Found::look(store, None, key, step.forced)? {
        return Ok(StepEnd::Found(hit));
    }
    if waited {
        // Meanwhile, other stages took its part of the machine.
        return Ok(StepEnd::Again);
    }
    let work = store.work(key);
    let resumed = work.has_checkpoint();
    write_job(&step.job, &work)?;
    work.forget_failure();
    tell(StepEvent::Running { resumed });

    let start = Instant::now();
    let (outcome, said) = execute(&step, &work, &mut stop, &tell).await?;
    match outcome {
        Outcome::Cancelled => return Ok(StepEnd::Cancelled),
        Outcome::Failed { message, help, .. } => return Ok(failed(message, help)),
        Outcome::Done => {}
    }
    let seconds = start.elapsed().as_secs_f64();
    let store = store.clone();
    let receipt = tokio::task::spawn_blocking(move || keep(&store, step.provenance, said, seconds)).await??;
    Ok(StepEnd::Ran(Box::new(receipt)))
}

/// What a stage said that its receipt keeps.
#[derive(Default)]
struct Said {
    results: BTreeMap<String, f64>,
    peak_memory: Option<u64>,
    host: String,
}

/// How often a stage's progress is written for other processes.
const TELL: Duration = Duration::from_millis(500);

/// Runs the stage's process, again after a pause if its failure is transient.
async fn execute(
    step: &Step,
    work: &Work,
    stop: &mut watch::Receiver<StopSignal>,
    tell: &impl Fn(StepEvent),
) -> Result<(Outcome, Said), SchedulerError> {
    let (mut tries, mut told) = (0, None::<Instant>);
    loop {
        let mut said = Said::default();
        let listen = |event| {
            match &event {
                Event::Started { host } => said.host.clone_from(host),
                Event::Result { name, value } => drop(said.results.insert(name.clone(), *value)),
                Event::PeakMemory { bytes } => said.peak_memory = Some(*bytes),
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
            .map_err(SchedulerError::Process)?;
        let message = match &outcome {
            Outcome::Failed { message, transient: true, .. } if tries < step.retry.times => message.clone(),
            _ => return Ok((outcome, said)),
        };
        // Longer each time: what does not pass within seconds may pass within minutes.
        let pause = step.retry.pause * 4_u32.saturating_pow(tries);
        tries += 1;
        tell(StepEvent::Retrying { message, seconds: pause.as_secs_f64() });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok((Outcome::Cancelled, said)),
        }
    }
}

/// Takes what the stage made into the store. The receipt comes last: it is the proof that the rest is there.
fn keep(store: &Store, provenance: Provenance, said: Said, seconds: f64) -> Result<Receipt, StoreError> {
    let key = provenance.manifest.key();
    let work = store.work(key);
    // Objects that no receipt names yet must not be collected.
    let _guard = store.guard()?;
    let product = Product {
        output: store.take_in(&work.out())?,
        log: store.keep_file(&work.log())?,
        metrics: store.keep_file(&work.metrics())?,
        events: store.keep_file(&work.events())?,
        results: said.results,
        peak_memory: said.peak_memory,
        timing: Timing { finished: now() as u64, seconds },
        host: said.host,
    };
    let receipt = Receipt::new(provenance, product);
    store.write_receipt(&receipt)?;
    work.clear()?;
    Ok(receipt)
}

fn write_job(job: &JobSpec, work: &Work) -> Result<(), StoreError> {
    work.create().map_err(StoreError::io(work.path()))?;
    let path = work.job();
    let text = serde_json::to_vec_pretty(job)
        .map_err(|error| StoreError::Refused { path: path.clone(), what: error.to_string() })?;
    std::fs::write(&path, text).map_err(StoreError::io(&path))
}
