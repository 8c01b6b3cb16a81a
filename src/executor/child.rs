//! The process in which a stage runs: reads the job file, runs the stage and reports the outcome. Independent of the scheduler.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, Write},
    panic::{self, AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::STOP;
use imp_stages::{
    Job, KindVisitor, Stage, StageError,
    contract::{
        event::Event,
        job::{self, JobSpec, Sink},
        process_memory,
    },
    place, visit,
};

/// How the log of each attempt begins.
pub(crate) const STARTED: &str = "started a stage of the kind";
/// How long a stage whose runner was killed may take to save its checkpoint.
const ORPHAN_TIME: Duration = Duration::from_secs(4);
/// How long to wait for the process of a killed run that still works on the same key.
const LOCK_TIME: Duration = Duration::from_secs(10);
/// The shortest time between two progress events. More would only cost time.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// The remedy for a job file that this version can't use: another run writes a new one.
const AGAIN: &str = "run the same command again";

/// Runs the stage that the job file describes.
pub(crate) fn run_job(job_file: &Path) -> ExitCode {
    let sink = Arc::new(Lines::default());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    sink.send(Event::Started { host });
    let event = match run(job_file, &sink) {
        Ok(()) => Event::Done,
        Err(StageError::Cancelled) => Event::Cancelled,
        Err(error) => {
            tracing::error!("{error}");
            let transient = matches!(error, StageError::Transient { .. });
            Event::Failed { message: error.to_string(), help: error.help().map(Into::into), transient }
        }
    };
    if let Some(bytes) = process_memory::peak() {
        sink.send(Event::PeakMemory { bytes });
    }
    let code = if event == Event::Done { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    sink.send(event);
    code
}

fn run(job_file: &Path, sink: &Arc<Lines>) -> Result<(), StageError> {
    let text = fs::read(job_file).map_err(StageError::io(job_file))?;
    let spec: JobSpec =
        serde_json::from_slice(&text).map_err(|error| StageError::input(job_file, error.to_string(), AGAIN))?;
    let _lock = lock(&spec.work)?;
    for (folder, keep) in [(job::OUT, false), (job::CHECKPOINT, true)] {
        let path = spec.work.join(folder);
        if !keep && path.exists() {
            fs::remove_dir_all(&path).map_err(StageError::io(&path))?;
        }
        fs::create_dir_all(&path).map_err(StageError::io(&path))?;
    }
    let cancel = Arc::new(AtomicBool::new(false));
    watch_runner(cancel.clone());
    // Batch systems send signals to every process of a job. Treat them like a request of the runner to stop.
    let on_signal = cancel.clone();
    if let Err(error) = ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed)) {
        tracing::warn!("can't listen for signals, so a signal ends this stage without a checkpoint: {error}");
    }

    let (kind, config) = (spec.kind.clone(), spec.config.clone());
    let forward = {
        let sink = sink.clone();
        move |event| sink.send(event)
    };
    hush_faults();
    let job = Job::new(spec, Box::new(forward), cancel);
    catch_unwind(AssertUnwindSafe(|| visit(&kind, Run { config, job: &job })))
        .unwrap_or_else(|panic| Some(Err(panicked(panic.as_ref()))))
        .unwrap_or_else(|| Err(StageError::failed(format!("unknown kind of stage `{kind}`"), AGAIN)))
}

struct Run<'a> {
    config: serde_json::Value,
    job: &'a Job,
}

impl KindVisitor for Run<'_> {
    type Output = Result<(), StageError>;

    fn visit<S: Stage>(self) -> Self::Output {
        let config: S::Config = serde_json::from_value(self.config).map_err(|error| {
            StageError::failed(format!("this version of imp-flow can't read the job file: {error}"), AGAIN)
        })?;
        tracing::info!("{STARTED} {}", S::KIND);
        S::run(&config, self.job)?;
        tracing::info!("done");
        Ok(())
    }
}

/// Keeps faults of a device out of the log: they are reported as errors, and look like bugs there.
fn hush_faults() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !place::is_fault(info.payload()) {
            usual(info);
        }
    }));
}

/// The error for a stage that panicked.
fn panicked(panic: &(dyn std::any::Any + Send)) -> StageError {
    if let Some(fault) = place::fault(panic) {
        return fault;
    }
    let text =
        panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref::<String>().cloned());
    StageError::failed(
        format!("the stage crashed: {}", text.unwrap_or_else(|| "no message".into())),
        "this is a bug in imp-flow: please report it with the log",
    )
}

/// Waits until no other process works in this folder. A stage whose runner was killed may still be saving its checkpoint.
fn lock(work: &Path) -> Result<File, StageError> {
    let path = work.join(job::LOCK);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(StageError::io(&path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_TIME => thread::sleep(Duration::from_millis(20)),
            Err(TryLockError::WouldBlock) => {
                return Err(StageError::failed(
                    format!("another process is working in {}", work.display()),
                    "end that process, then run the same command again",
                ));
            }
            Err(TryLockError::Error(source)) => return Err(StageError::Io { path, source }),
        }
    }
}

/// Listens to the runner on standard input. [`STOP`] is a request to save a checkpoint and end. The end of input means that the
/// runner was killed; the stage must not outlive it for long.
fn watch_runner(cancel: Arc<AtomicBool>) {
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            match line {
                Ok(line) if line == STOP => cancel.store(true, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        cancel.store(true, Ordering::Relaxed);
        thread::sleep(ORPHAN_TIME);
        tracing::error!("the runner is gone");
        std::process::exit(1);
    });
}

/// Writes events as JSON lines to standard output.
#[derive(Default)]
struct Lines {
    last_progress: Mutex<Option<Instant>>,
}

impl Sink for Lines {
    fn send(&self, event: Event) {
        if let Event::Progress(progress) = &event {
            let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
            let complete = progress.total > 0 && progress.done >= progress.total;
            if !complete && last.is_some_and(|at| at.elapsed() < PROGRESS_INTERVAL) {
                return;
            }
            *last = Some(Instant::now());
        } else if let Event::Warning { message } = &event {
            tracing::warn!("{message}");
        }
        if let Ok(line) = serde_json::to_string(&event) {
            let mut out = io::stdout().lock();
            // If the runner is gone, standard input has ended, too, and `watch_runner` ends this process.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}
