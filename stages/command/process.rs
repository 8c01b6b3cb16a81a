//! The process of a command: started in a group of its own, watched, ended with all that it has started. Independent of what it does.
//!
//! Whatever happens to the process of the stage, no two attempts write at once. All processes of a command have a variable with the
//! stage's folder, by which they are found and ended, after the command as before the next attempt, wherever each of them writes its
//! output. The command has a lock of that folder as its standard input, which tells of one that can't be ended from here.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions, TryLockError},
    io::{BufRead, BufReader, Read},
    os::unix::{
        ffi::OsStrExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid};

use super::LOCK;
use crate::{Job, StageError, contract::event::Progress};

/// The variable that holds the stage's folder, which is the same for all attempts. That of the output need not be.
const MARK: &str = "IMP_FLOW_WORK";
/// How often it is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long it may take to end after SIGTERM. Less than a stage may take whose runner was killed.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest line of output that is taken as one.
const LONGEST_LINE: u64 = 64 << 10;
/// How a line begins that tells progress: `imp-flow: progress 10/100 images`.
const PROGRESS: &str = "imp-flow: progress ";

/// A command that runs. Ends with all that it has started when this is dropped.
pub(super) struct Running {
    child: Child,
    name: String,
    /// The stage's folder.
    work: PathBuf,
    /// Whether it has ended by itself.
    ended: bool,
    readers: Vec<JoinHandle<()>>,
    progress: Receiver<Progress>,
}

impl Running {
    /// Starts `command`, once nothing is left of an earlier attempt in the stage's folder `work`.
    pub(super) fn start(mut command: Command, work: &Path) -> Result<Self, StageError> {
        command.env(MARK, work);
        end_all(work);
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let held = take_lock(&work.join(LOCK), work)?;
        let shared = held.try_clone().map_err(|error| cant_start(&name, &error))?;
        command.stdin(Stdio::from(shared)).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| cant_start(&name, &error))?;
        let (sender, progress) = mpsc::channel();
        let readers = [child.stdout.take().map(reader(&sender)), child.stderr.take().map(reader(&sender))];
        let readers = readers.into_iter().flatten().collect();
        let running = Self { child, name, work: work.into(), ended: false, readers, progress };
        Ok(running)
    }

    /// Waits for its end, and tells what it tells.
    pub(super) fn wait(mut self, job: &Job) -> Result<(), StageError> {
        let mut asked = None;
        while !self.has_ended() {
            self.progress.try_iter().for_each(|progress| job.progress(progress));
            match asked {
                None if job.cancelled() => {
                    signal_group(self.child.id(), Signal::TERM);
                    asked = Some(Instant::now());
                }
                Some(at) if at.elapsed() > PATIENCE => signal_group(self.child.id(), Signal::KILL),
                _ => {}
            }
            thread::sleep(TICK);
        }
        // What it has started and left would go on writing into the result. The number of the group is its own until it is waited for.
        signal_group(self.child.id(), Signal::KILL);
        self.ended = true;
        let status = self.child.wait().map_err(|error| cant_start(&self.name, &error))?;
        end_all(&self.work);
        if asked.is_some() {
            return Err(StageError::Cancelled);
        }
        let end = Instant::now();
        // Something that has left the group and this machine's view may hold the pipes.
        while self.readers.iter().any(|reader| !reader.is_finished()) && end.elapsed() < PATIENCE && !job.cancelled() {
            thread::sleep(TICK);
        }
        self.progress.try_iter().for_each(|progress| job.progress(progress));
        check(&self.name, status)
    }
}

impl Running {
    /// Whether the process has ended, which it still has to be waited for.
    fn has_ended(&self) -> bool {
        let Some(process) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) else { return true };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error is told by waiting for it.
        waitid(WaitId::Pid(process), options).map_or(true, |ended| ended.is_some())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            signal_group(self.child.id(), Signal::KILL);
            let _ = self.child.wait();
            end_all(&self.work);
        }
    }
}

/// Ends all processes that commands of the stage in the folder `work` have started, also those that have left its group. They are known by
/// the variable that it was given; where the system doesn't show the environment of processes, there are none.
pub(super) fn end_all(work: &Path) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let running = running_for(work);
        if running.is_empty() {
            return;
        }
        for process in running {
            // It may have ended meanwhile.
            let _ = kill_process(process, Signal::KILL);
        }
        thread::sleep(TICK);
    }
}

fn running_for(work: &Path) -> Vec<Pid> {
    let mark = [MARK.as_bytes(), b"=", work.as_os_str().as_bytes()].concat();
    let is_marked = |process: &Path| {
        let environment = std::fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark)
    };
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
    let number = |process: &Path| Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?);
    processes.filter_map(|process| number(&process).filter(|_| is_marked(&process))).collect()
}

/// Only for a group that is there: its number may be that of another one later.
fn signal_group(group: u32, signal: Signal) {
    if let Some(group) = i32::try_from(group).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, signal);
    }
}

fn cant_start(name: &str, error: &std::io::Error) -> StageError {
    StageError::failed(
        format!("can't run {name}: {error}"),
        "check `command`: the program must be executable on this machine",
    )
}

fn check(name: &str, status: ExitStatus) -> Result<(), StageError> {
    let help = "what it has said is in the log";
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(StageError::failed(format!("{name} ended with exit code {code}"), help)),
        (None, Some(9)) => {
            Err(StageError::failed(format!("{name} was killed (signal 9)"), "the system may have run out of memory"))
        }
        (None, signal) => {
            Err(StageError::failed(format!("{name} was ended by signal {}", signal.unwrap_or_default()), help))
        }
    }
}

/// Takes the lock of the folder's commands. What an earlier attempt has left is ended.
fn take_lock(path: &Path, work: &Path) -> Result<File, StageError> {
    let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let file = open.map_err(StageError::io(path))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                end_all(work);
                thread::sleep(TICK);
            }
            Err(TryLockError::WouldBlock) => {
                let message = "a command of an earlier attempt still runs, and does not end";
                return Err(StageError::failed(
                    message,
                    format!("end the processes that have {} open", path.display()),
                ));
            }
            Err(TryLockError::Error(source)) => return Err(StageError::Io { path: path.to_path_buf(), source }),
        }
    }
}

/// Starts to read what a command says.
fn reader<R: Read + Send + 'static>(progress: &Sender<Progress>) -> impl FnOnce(R) -> JoinHandle<()> {
    let progress = progress.clone();
    move |said| thread::spawn(move || read_lines(said, &progress))
}

/// Writes the lines that it says into the log, but for those that tell progress.
fn read_lines(said: impl Read, progress: &Sender<Progress>) {
    let mut reader = BufReader::new(said);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\n', '\r']);
        if let Some(told) = line.strip_prefix(PROGRESS).and_then(parse) {
            // It fails only if nobody waits any more.
            drop(progress.send(told));
        } else {
            // Colours and the like are for a terminal that is not there.
            tracing::info!("{}", line.replace(|c: char| c.is_control() && c != '\t', "\u{fffd}"));
        }
    }
}

/// `10/100 images`.
fn parse(text: &str) -> Option<Progress> {
    let (counts, unit) = text.split_once(' ').unwrap_or((text, "steps"));
    let (done, total) = counts.split_once('/').unwrap_or((counts, "0"));
    let unit: String = unit.chars().filter(|c| !c.is_control()).take(20).collect();
    Some(Progress { done: done.parse().ok()?, total: total.parse().ok()?, unit, values: BTreeMap::new() })
}
