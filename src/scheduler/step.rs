//! Runs one stage, from taking its lock to writing its receipt. Independent of other stages.

use std::{
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use imp_stages::contract::{device::Environment, event::Event};
use tokio::sync::{mpsc, watch};

use super::{SchedulerError, event::Start, lookup::Found, plan::CHANGED};
use crate::{
    executor::{BEGINNINGS, Executors, Outcome, PROGRESS, Report, StopSignal, Task},
    store::{Digest, Hit, Mended, Product, Provenance, Receipt, Sessions, Store, StoreError, Timing, Work, now},
};

/// Everything that is needed to run a stage.
pub(super) struct Step {
    pub(super) index: usize,
    pub(super) key: Digest,
    /// Whether it runs even if it is cached.
    pub(super) forced: bool,
    pub(super) provenance: Provenance,
    pub(super) task: Task,
    pub(super) executors: Executors,
    pub(super) retry: Retry,
}

/// How many times a stage is retried after a transient failure, and the pause before the first retry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retry {
    pub(crate) times: u32,
    pub(crate) pause: Duration,
}

/// How a step ended.
pub(super) enum StepEnd {
    /// It ran; its receipt, and the folder of its tree.
    Ran(Box<Receipt>, PathBuf),
    /// Another run has made the artifact, which is in this folder.
    Found(Box<Hit>, PathBuf),
    Cancelled,
    /// It waited for another run that did not make the artifact. This run has to make it once the machine has room.
    Requeue,
    /// The content of an input, given by its digest, is gone. It has to be made again first.
    InputLost(Digest),
    Failed {
        message: String,
        help: Option<String>,
        log: Option<PathBuf>,
        /// The last lines of the log.
        tail: Vec<String>,
    },
}

/// What happens while a step runs.
pub(super) enum StepEvent {
    /// Another run holds the lock.
    Waiting,
    /// The process was started, or is about to be.
    /// `before` are the seconds of earlier sessions.
    Running { resumed: bool, start: Start, before: f64 },
    /// Where it is, if not on this machine.
    State(String),
    /// Something about where it is that the user should know.
    Note(String),
    /// It is taken from the remote cache: so many bytes are missing here.
    Pulling { bytes: u64 },
    /// It was taken from the remote cache: so many bytes in so many files were transferred.
    Pulled { bytes: u64, files: usize },
    /// A transient failure; the stage runs again in this many seconds.
    Retrying { message: String, seconds: f64 },
    /// An event of the stage itself.
    Stage(Event),
}

/// Runs the step: takes the lock, checks the cache again, executes the stage, stores its output and writes the receipt.
pub(super) async fn run(
    step: Step,
    store: Store,
    stop: watch::Receiver<StopSignal>,
    events: mpsc::UnboundedSender<(usize, StepEvent)>,
) -> (usize, StepEnd) {
    let (index, key) = (step.index, step.key);
    let end = match make(step, &store, stop, &events).await {
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

/// The last lines of a failed stage's log, without those that `message` repeats and those of progress.
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
    // The log covers all attempts; only the last one matters.
    let ends = BEGINNINGS.iter().filter_map(|line| Some(text.rfind(line)? + line.len()));
    let last_attempt = ends.max().map_or(text.as_str(), |at| &text[at..]);
    let first = message.lines().next().unwrap_or_default();
    let repeats = |line: &str| line.ends_with(&format!(" {first}")) || message.lines().any(|part| part == line);
    // Date and time come first.
    let is_progress = |line: &str| line.split(' ').nth(2) == Some(PROGRESS);
    let is_new = |line: &&str| !line.is_empty() && !repeats(line) && !is_progress(line);
    let lines: Vec<&str> = last_attempt.lines().skip(1).filter(is_new).collect();
    lines[lines.len().saturating_sub(LINES)..].iter().map(ToString::to_string).collect()
}

async fn make(
    step: Step,
    store: &Store,
    mut stop: watch::Receiver<StopSignal>,
    events: &mpsc::UnboundedSender<(usize, StepEvent)>,
) -> Result<StepEnd, SchedulerError> {
    let (index, key) = (step.index, step.key);
    // Sending fails only if the run is over. Then no report is needed.
    let send = |event| drop(events.send((index, event)));
    let mut waited = false;
    let waiting = || {
        waited = true;
        send(StepEvent::Waiting);
    };
    let _lock = tokio::select! {
        lock = store.lock(key, waiting) => lock?,
        _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok(StepEnd::Cancelled),
    };
    // Whatever reads files runs beside the scheduler, which goes on showing progress and noticing Ctrl-C.
    let (found, mended) = {
        let (store, forced) = (store.clone(), step.forced);
        tokio::task::spawn_blocking(move || Found::look_up(&store, None, key, forced)).await??
    };
    let warn = |message| send(StepEvent::Stage(Event::Warning { message }));
    if let Some(mended) = mended {
        warn(format!("{CHANGED}: {mended}"));
    }
    if let Found::Hit(hit, folder) = found {
        return Ok(StepEnd::Found(hit, folder));
    }
    if waited {
        // Its resources were released while it waited.
        return Ok(StepEnd::Requeue);
    }
    let work = store.work(key);
    let (mended, lost) = {
        let (store, inputs) = (store.clone(), step.provenance.manifest.inputs.clone());
        tokio::task::spawn_blocking(move || check_inputs(&store, &inputs)).await??
    };
    for (name, mended) in mended {
        if work.is_outdated(mended.until) {
            start_over(&step, store, &work, &mut stop).await?;
        }
        warn(format!("its input `{name}` was changed: {mended}"));
    }
    if let Some(lost) = lost {
        return Ok(StepEnd::InputLost(lost));
    }
    if work.was_being_taken() {
        // A runner that died has taken some of the output, or all.
        work.forget_submission()?;
    }
    let resumed = work.has_checkpoint();
    let start = match step.task.place.is_here() {
        _ if work.is_submitted() => Start::Found,
        true => Start::Here,
        false => Start::Submitted,
    };
    // What an earlier run has sent elsewhere has its job file.
    if start != Start::Found {
        write_job(store, &step.task.job, &work)?.into_iter().for_each(warn);
    }
    work.forget_failure();
    work.forget_state();
    // A job that was found began its session when it was sent.
    let before = if start == Start::Found { work.sessions() } else { work.begin_session(resumed) };
    send(StepEvent::Running { resumed, start, before: before.seconds });

    run_and_store(step, store, &work, before, stop, &send).await
}

/// Takes away what was made from an input that was changed, and ends the job that may still be at it.
async fn start_over(
    step: &Step,
    store: &Store,
    work: &Work,
    stop: &mut watch::Receiver<StopSignal>,
) -> Result<(), SchedulerError> {
    // First, so that no checkpoint of it is found by a run after one that ends here.
    let Some(aside) = store.set_aside(work)? else { return Ok(()) };
    let folder = aside.path();
    tokio::select! {
        () = step.executors.abandon(&folder) => {}
        _ = stop.wait_for(|stop| *stop == StopSignal::Kill) => {}
    }
    Ok(())
}

/// Executes the stage, checks that its inputs are still what they were, stores its output and writes the receipt.
async fn run_and_store(
    step: Step,
    store: &Store,
    work: &Work,
    before: Sessions,
    mut stop: watch::Receiver<StopSignal>,
    send: &impl Fn(StepEvent),
) -> Result<StepEnd, SchedulerError> {
    let start = Instant::now();
    let (outcome, reported) = execute(&step, work, &mut stop, send).await?;
    let seconds = reported.seconds.unwrap_or_else(|| start.elapsed().as_secs_f64());
    let sessions = before.count.saturating_add(1);
    let timing = Timing { finished: now() as u64, seconds: before.seconds + seconds, sessions };
    if !matches!(outcome, Outcome::Done) {
        work.end_session(before, seconds);
    }
    let changed = {
        let (store, inputs) = (store.clone(), step.provenance.manifest.inputs.clone());
        tokio::task::spawn_blocking(move || changed_input(&store, &inputs, timing.finished)).await?
    };
    if let Some(name) = changed {
        // Its checkpoint may come from what was changed.
        start_over(&step, store, work, &mut stop).await?;
        let help = "let no other program write into artifacts, then run the same command again";
        return Ok(failed(format!("its input `{name}` was changed while it was running"), Some(help.into())));
    }
    match outcome {
        Outcome::Cancelled => return Ok(StepEnd::Cancelled),
        Outcome::Failed { message, help, .. } => return Ok(failed(message, help)),
        Outcome::Done => {}
    }
    let store = store.clone();
    let Stored { receipt, folder, mended } =
        tokio::task::spawn_blocking(move || store_result(&store, step.provenance, reported, timing)).await??;
    for mended in mended {
        send(StepEvent::Stage(Event::Warning { message: format!("{CHANGED}: {mended}") }));
    }
    Ok(StepEnd::Ran(Box::new(receipt), folder))
}

/// Inputs by name, with what was put right.
type MendedInputs = Vec<(String, Mended)>;

/// Puts the inputs right. Returns what was wrong, and an input that can't be put right.
fn check_inputs(
    store: &Store,
    inputs: &BTreeMap<String, Digest>,
) -> Result<(MendedInputs, Option<Digest>), StoreError> {
    let (mut found, mut lost) = (Vec::new(), None);
    for (name, tree) in inputs {
        let (folder, mended) = store.input_folder(*tree)?.into_parts();
        found.extend(mended.map(|mended| (name.clone(), mended)));
        lost = lost.or_else(|| folder.is_none().then_some(*tree));
    }
    Ok((found, lost))
}

/// The name of an input that was changed before `now`.
fn changed_input(store: &Store, inputs: &BTreeMap<String, Digest>, now: u64) -> Option<String> {
    inputs.iter().find(|(_, tree)| !store.is_still_intact(**tree, now)).map(|(name, _)| name.clone())
}

/// What a stage reported for its receipt.
#[derive(Default)]
struct Reported {
    results: BTreeMap<String, f64>,
    peak_memory: Option<u64>,
    environment: Option<Environment>,
    cautions: Vec<String>,
    unchecked: bool,
    host: String,
    /// How long it took, if not as long as this run waited for it.
    seconds: Option<f64>,
}

/// How often a stage's progress is saved for other processes to read.
const SAVE_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the stage's process, and retries it after a pause if the failure is transient.
async fn execute(
    step: &Step,
    work: &Work,
    stop: &mut watch::Receiver<StopSignal>,
    send: &impl Fn(StepEvent),
) -> Result<(Outcome, Reported), SchedulerError> {
    let (mut retries, mut saved) = (0, None::<Instant>);
    loop {
        let mut reported = Reported::default();
        let listen = |report| {
            let event = match report {
                Report::Event(event) => event,
                Report::Took(seconds) => return reported.seconds = Some(seconds),
                Report::Note(message) => return send(StepEvent::Note(message)),
                Report::State(text) => {
                    work.note_state(&text);
                    return send(StepEvent::State(text));
                }
            };
            match &event {
                Event::Started { host } => reported.host.clone_from(host),
                Event::Result { name, value } => drop(reported.results.insert(name.clone(), *value)),
                Event::PeakMemory { bytes } => reported.peak_memory = Some(*bytes),
                Event::Environment(environment) => reported.environment = Some(environment.clone()),
                Event::Caution { message } => reported.cautions.push(message.clone()),
                Event::Unchecked { .. } => reported.unchecked = true,
                Event::Progress(progress) if saved.is_none_or(|at| at.elapsed() > SAVE_INTERVAL) => {
                    saved = Some(Instant::now());
                    work.note_progress(progress);
                }
                _ => {}
            }
            send(StepEvent::Stage(event));
        };
        let outcome = step.executors.run(&step.task, stop.clone(), listen).await.map_err(SchedulerError::Process)?;
        let message = match &outcome {
            Outcome::Failed { message, transient: true, .. } if retries < step.retry.times => message.clone(),
            _ => return Ok((outcome, reported)),
        };
        // Longer each time: a failure that outlasts seconds may pass within minutes.
        let pause = step.retry.pause * 4_u32.saturating_pow(retries);
        retries += 1;
        send(StepEvent::Retrying { message, seconds: pause.as_secs_f64() });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop != StopSignal::None) => return Ok((Outcome::Cancelled, reported)),
        }
    }
}

/// The results of a stage in the store.
struct Stored {
    receipt: Receipt,
    /// Of its tree.
    folder: PathBuf,
    /// What was put right.
    mended: Vec<Mended>,
}

/// Moves the results of a stage into the store. The receipt is written last, because it proves that everything else is there.
fn store_result(
    store: &Store,
    provenance: Provenance,
    reported: Reported,
    timing: Timing,
) -> Result<Stored, StoreError> {
    let key = provenance.manifest.key();
    let work = store.work(key);
    // Keeps garbage collection from deleting objects that no receipt names yet.
    let _guard = store.guard()?;
    work.begin_taking()?;
    let (output, mended) = store.add_folder(&work.out())?;
    let product = Product {
        output,
        log: store.keep_log(&work.log())?,
        metrics: store.keep_file(&work.metrics())?,
        events: store.keep_file(&work.events())?,
        results: reported.results,
        peak_memory: reported.peak_memory,
        environment: reported.environment,
        cautions: reported.cautions,
        unchecked: reported.unchecked,
        timing,
        host: reported.host,
    };
    let receipt = Receipt::new(provenance, product);
    store.write_receipt(&receipt)?;
    if let Err(error) = work.clear() {
        // Another program may have a file of it open on a network disk. The result is in the store all the same.
        tracing::warn!("can't remove what the stage worked with: {error}");
    }
    let (folder, again) = store.tree_folder(output.digest)?.into_parts();
    Ok(Stored { receipt, folder: folder.unwrap_or_default(), mended: mended.into_iter().chain(again).collect() })
}

/// Writes the job file into a new or existing work folder. Returns warnings.
fn write_job(store: &Store, job: &[u8], work: &Work) -> Result<Vec<String>, StoreError> {
    let warnings = store.create_work(work)?;
    let path = work.job();
    std::fs::write(&path, job).map_err(StoreError::io(&path))?;
    Ok(warnings)
}
