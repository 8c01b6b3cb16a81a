//! The process in which a stage runs: reads the job file, runs the stage and reports the outcome. Independent of the scheduler.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, BufRead, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{STOP, node::NodeOutput, slurm};
use crate::{
    pool,
    store::{look_again, look_up, now, read},
};
use imp_stages::{
    Job, KindVisitor, Stage, StageError,
    contract::{
        event::{Event, Progress},
        job::{self, JobSpec, Sink},
        process_memory,
    },
    place, visit,
};

/// How the log of each attempt begins.
pub(super) const STARTED: &str = "started a stage of the kind";

/// How a line of progress in the log begins.
pub(crate) const PROGRESS: &str = "progress:";

/// How long a stage whose runner was killed may take to save its checkpoint.
const ORPHAN_TIME: Duration = Duration::from_secs(4);
/// How long to wait for the process of a killed run that still works on the same key.
const LOCK_TIME: Duration = Duration::from_secs(10);
/// How long to wait for it on a cluster: the lock of a node that has failed is held for a while.
const CLUSTER_LOCK_TIME: Duration = Duration::from_mins(3);
/// The shortest time between two progress events. More would only cost time.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);
/// The same where each event is written to a shared disk.
const CLUSTER_PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The time between two looks for a request to stop on a shared disk.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two lines of progress in the log.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// The remedy for a job file that this version can't use: another run writes a new one.
const AGAIN: &str = "run the same command again";

/// Runs the stage that the job file describes. With an `attempt`, it is a job of a cluster, which its runner need not survive. With an
/// `output`, what it makes is written in that folder of the node until it is complete.
pub(crate) fn run_job(job_file: &Path, attempt: Option<&str>, output: Option<&Path>) -> ExitCode {
    let sink = match attempt.map(|attempt| Lines::to_file(job_file, attempt)) {
        None => Lines::new(None),
        Some(Ok(Some(sink))) => sink,
        Some(Ok(None)) => {
            tracing::info!("this job was given up: another one makes this stage, or nobody wants it any more");
            return ExitCode::SUCCESS;
        }
        Some(Err(error)) => {
            tracing::error!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let sink = Arc::new(sink);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    // The name by which the cluster knows the node.
    let node = attempt.and_then(|_| std::env::var("SLURMD_NODENAME").ok());
    sink.send(Event::Started { host: node.unwrap_or(host) });
    let event = match run(job_file, attempt, output, &sink) {
        Ok(()) => Event::Done,
        Err(StageError::Cancelled) => {
            tracing::info!("stopped");
            Event::Cancelled
        }
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

fn run(job_file: &Path, attempt: Option<&str>, output: Option<&Path>, sink: &Arc<Lines>) -> Result<(), StageError> {
    let text = read(job_file).map_err(StageError::io(job_file))?;
    let spec: JobSpec =
        serde_json::from_slice(&text).map_err(|error| StageError::input(job_file, error.to_string(), AGAIN))?;
    let _lock = lock(&spec.work, if attempt.is_some() { CLUSTER_LOCK_TIME } else { LOCK_TIME })?;
    // Again under the lock: whoever gave this job up may have been working here meanwhile.
    if attempt.is_some_and(|attempt| !slurm::Submission::is_present(&spec.work, attempt)) {
        return Err(StageError::Cancelled);
    }
    visit(&spec.kind, Prepare { work: &spec.work }).unwrap_or(Ok(()))?;
    for (folder, keep) in [(job::OUT, false), (job::CHECKPOINT, true)] {
        let path = spec.work.join(folder);
        if !keep && path.exists() {
            fs::remove_dir_all(&path).map_err(StageError::io(&path))?;
        }
        fs::create_dir_all(&path).map_err(StageError::io(&path))?;
    }
    let node = output.map(NodeOutput::begin).transpose()?;
    let disk = attempt.map(|_| SharedDisk::of(&spec.work)).transpose()?;
    let cancel = Arc::new(AtomicBool::new(false));
    match attempt {
        None => watch_runner(cancel.clone()),
        Some(attempt) => watch_files(cancel.clone(), spec.work.clone(), attempt.to_string()),
    }
    // Batch systems send signals to every process of a job. Treat them like a request of the runner to stop.
    let on_signal = cancel.clone();
    if let Err(error) = ctrlc::set_handler(move || on_signal.store(true, Ordering::Relaxed)) {
        tracing::warn!("can't listen for signals, so a signal ends this stage without a checkpoint: {error}");
    }

    // Beside a GPU the pool must go on while this thread waits.
    if spec.runtime.gpus == 0 {
        pool::join();
    }
    let (kind, config) = (spec.kind.clone(), spec.config.clone());
    let forward = {
        let sink = sink.clone();
        move |event| sink.send(event)
    };
    place::hush_faults();
    let work = spec.work.clone();
    let mut job = Job::new(spec, Box::new(forward), cancel);
    if let Some(node) = &node {
        job = job.with_output(node.folder());
    }
    catch_unwind(AssertUnwindSafe(|| visit(&kind, Run { config, job: &job })))
        .unwrap_or_else(|panic| Some(Err(panicked(panic.as_ref()))))
        .unwrap_or_else(|| Err(StageError::failed(format!("unknown kind of stage `{kind}`"), AGAIN)))?;
    node.map_or(Ok(()), |node| node.take_into(&work.join(job::OUT), &job.linked(), &|| job.check_cancelled()))?;
    disk.map_or(Ok(()), |disk| disk.flush())
}

/// The disk of a work folder. What it could not write, such as where it was full for a moment, NFS tells the machine that has written it,
/// and later than the write.
struct SharedDisk(File);

impl SharedDisk {
    fn of(work: &Path) -> Result<Self, StageError> {
        let disk = Self(File::open(work).map_err(StageError::io(work))?);
        // An error of before, which nobody has asked for yet, is none of this stage.
        let _ = disk.sync();
        Ok(disk)
    }

    fn flush(&self) -> Result<(), StageError> {
        self.sync().map_err(|error| {
            StageError::transient(
                format!("the disk of the cache could not write something while this stage ran: {error}"),
                "see that it has room and that nobody is over quota, then run the same command again",
            )
        })
    }

    #[cfg(target_os = "linux")]
    fn sync(&self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(&self.0)?)
    }

    #[cfg(not(target_os = "linux"))]
    fn sync(&self) -> std::io::Result<()> {
        self.0.sync_all()
    }
}

struct Prepare<'a> {
    work: &'a Path,
}

impl KindVisitor for Prepare<'_> {
    type Output = Result<(), StageError>;

    fn visit<S: Stage>(self) -> Self::Output {
        S::prepare(self.work)
    }
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
        if fs::read_dir(self.job.checkpoint()).is_ok_and(|mut entries| entries.next().is_some()) {
            tracing::info!("goes on from its checkpoint");
        }
        S::run(&config, self.job)?;
        tracing::info!("done");
        Ok(())
    }
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
fn lock(work: &Path, patience: Duration) -> Result<File, StageError> {
    let path = work.join(job::LOCK);
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(StageError::io(&path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => {
                // The checkpoint of an attempt on another machine.
                look_again(&work.join(job::CHECKPOINT).join("any"));
                return Ok(file);
            }
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => thread::sleep(Duration::from_millis(20)),
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

/// Looks for the file that asks a job to save a checkpoint and end, and whether the job is still wanted: a folder that was cleared is
/// another attempt's, which must not find a checkpoint of this one.
fn watch_files(cancel: Arc<AtomicBool>, work: PathBuf, attempt: String) {
    // One look in so many is for the latter.
    const SELDOM: usize = 5;
    thread::spawn(move || {
        let stop = slurm::stop(&work, &attempt);
        for look in 1.. {
            if look_up(&stop).is_ok() {
                cancel.store(true, Ordering::Relaxed);
            }
            if look % SELDOM == 0 && slurm::Submission::was_replaced(&work, &attempt) {
                break;
            }
            thread::sleep(LOOK_INTERVAL);
        }
        tracing::error!("another attempt has taken its place");
        std::process::exit(1);
    });
}

/// Writes events as JSON lines: to standard output, or to the file of an attempt.
struct Lines {
    file: Option<Mutex<File>>,
    last_progress: Mutex<Option<Instant>>,
    /// When progress was last written into the log, and how much was done then.
    last_logged: Mutex<Option<(Instant, u64)>>,
}

impl Lines {
    fn new(file: Option<File>) -> Self {
        Self { file: file.map(Mutex::new), last_progress: Mutex::default(), last_logged: Mutex::default() }
    }

    /// Appends to the file of `attempt`. `None` if that is not the present attempt any more.
    fn to_file(job_file: &Path, attempt: &str) -> Result<Option<Self>, StageError> {
        let work = job_file.parent().unwrap_or_else(|| Path::new("."));
        if !slurm::Submission::is_present(work, attempt) {
            return Ok(None);
        }
        let path = slurm::events(work, attempt);
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(StageError::io(&path))?;
        Ok(Some(Self::new(Some(file))))
    }

    /// Writes progress into the log, now and then and at the end.
    fn log(&self, progress: &Progress, complete: bool) {
        let mut last = self.last_logged.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = |(at, done): (Instant, u64)| at.elapsed() >= LOG_INTERVAL || complete && done != progress.done;
        if last.is_none_or(is_new) {
            tracing::info!("{PROGRESS} {progress}");
            *last = Some((Instant::now(), progress.done));
        }
    }

    fn interval(&self) -> Duration {
        if self.file.is_some() { CLUSTER_PROGRESS_INTERVAL } else { PROGRESS_INTERVAL }
    }

    /// Writes one event. With the time, since whoever reads a file may do so much later.
    fn write(&self, event: &Event) -> io::Result<()> {
        let Some(file) = &self.file else {
            let mut out = io::stdout().lock();
            return writeln!(out, "{}", serde_json::to_string(event)?).and_then(|()| out.flush());
        };
        let mut line = serde_json::to_value(event)?;
        line["at"] = now().into();
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        // In one piece. Other machines see it when it has reached the server.
        file.write_all(format!("{line}\n").as_bytes()).and_then(|()| file.sync_data())
    }
}

impl Sink for Lines {
    fn send(&self, event: Event) {
        if let Event::Progress(progress) = &event {
            let mut last = self.last_progress.lock().unwrap_or_else(PoisonError::into_inner);
            let complete = progress.total > 0 && progress.done >= progress.total;
            self.log(progress, complete);
            if !complete && last.is_some_and(|at| at.elapsed() < self.interval()) {
                return;
            }
            *last = Some(Instant::now());
        } else if let Event::Warning { message } | Event::Caution { message } | Event::Unchecked { message } = &event {
            tracing::warn!("{message}");
        }
        // If the runner is gone, standard input has ended, too, and `watch_runner` ends this process.
        if let Err(error) = self.write(&event)
            && self.file.is_some()
        {
            tracing::error!("can't report to the runner: {error}");
        }
    }
}
