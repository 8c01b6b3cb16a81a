//! Follows a job to its end: what it reports, what Slurm says of it, and what it is told. Independent of how it was submitted.

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
    time::{Duration, Instant},
};

use imp_stages::contract::{event::Event, job};
use tokio::sync::watch;

use super::{
    Slurm,
    ask::{exit_code, scancel},
    ending::{End, Ended, Said},
    is_at_work,
    queue::Status,
    state::{Hindrance, Seen},
    submission::{JobId, Submission},
    tail::Tail,
};
use crate::{
    executor::{Outcome, Report, StopSignal},
    store::look_again,
};

/// The time between two looks at what the job reports.
const TICK: Duration = Duration::from_millis(500);
/// How long a job that was cancelled may take to end. Slurm kills it after its `KillWait`, 30 seconds by default.
const AFTER_KILL: Duration = Duration::from_secs(10);
/// How long what a node has written may take to arrive here, once its job has ended well.
const ARRIVES: Duration = Duration::from_secs(30);
/// The same of a job that has failed, from which nothing was heard yet.
const FAILED_ARRIVES: Duration = Duration::from_secs(5);
/// For how many looks in a row the lock of a running job must seem free before it is believed.
const LOOKS: u32 = 6;

/// A job that is followed.
pub(super) struct Follower<'a> {
    slurm: &'a Slurm,
    work: &'a Path,
    submission: &'a Submission,
    job: JobId,
    tail: Tail,
    /// What was last shown of its state.
    shown: Option<String>,
    /// What was warned of.
    warned: HashSet<&'static str>,
    /// What it was told, and when it was cancelled.
    sent: StopSignal,
    cancelled: Option<Instant>,
    /// When it was first seen to have ended.
    over: Option<Instant>,
    unlocked: u32,
    /// Whether the job of this number is another one, as on another cluster.
    is_stranger: bool,
}

impl<'a> Follower<'a> {
    pub(super) fn new(slurm: &'a Slurm, work: &'a Path, submission: &'a Submission, job: JobId) -> Self {
        Self {
            slurm,
            work,
            submission,
            job,
            tail: Tail::new(submission.events(work)),
            shown: None,
            warned: HashSet::new(),
            sent: StopSignal::None,
            cancelled: None,
            over: None,
            unlocked: 0,
            is_stranger: false,
        }
    }

    pub(super) async fn follow(
        mut self,
        stop: &mut watch::Receiver<StopSignal>,
        report: &mut impl FnMut(Report),
    ) -> io::Result<End> {
        loop {
            // Before the events are read, so that they are complete if it has ended.
            let status = self.slurm.queue.latest(&self.job);
            self.tail.read(&mut |event| report(Report::Event(event)))?;
            if let Some(end) = self.said() {
                self.tail.seconds().map(Report::Took).into_iter().for_each(&mut *report);
                return Ok(end);
            }
            if let Some(end) = self.look(status, report).await {
                return Ok(end);
            }
            if self.cancelled.is_some_and(|at| at.elapsed() > AFTER_KILL) {
                return Ok(End::Over(Outcome::Cancelled));
            }
            tokio::select! {
                () = tokio::time::sleep(TICK) => {}
                signal = changed(stop, self.sent) => match signal {
                    StopSignal::Leave => return Ok(End::Left),
                    // What Slurm was not told goes on, and has to be found again.
                    signal => if !self.tell(signal, report).await && signal == StopSignal::Kill {
                        return Ok(End::Left);
                    }
                }
            }
        }
    }

    /// The end, if the job has said it itself. That it stopped on request is an end only if it was this run's request: what else it
    /// means, Slurm knows.
    fn said(&self) -> Option<End> {
        match self.tail.ended.clone()? {
            Outcome::Cancelled if self.sent == StopSignal::None => None,
            outcome => Some(End::Over(outcome)),
        }
    }

    /// The end, if Slurm says it. Shows what it says.
    async fn look(&mut self, status: Status, report: &mut impl FnMut(Report)) -> Option<End> {
        if let Some(why) = self.slurm.queue.silent() {
            self.warn_once("silent", report, || {
                format!("Slurm does not answer, so only what the job reports is known: {why}")
            });
        }
        if self.tail.ended.is_some() {
            self.slurm.queue.hurry();
        }
        let is_gone = status == Status::Gone;
        let seen = match status {
            Status::Unknown => return None,
            Status::Gone => None,
            Status::Seen(seen) => Some(seen).filter(|seen| self.is_own(seen)),
        };
        let waits = seen.as_ref().is_some_and(|seen| seen.is("PENDING"));
        if self.tail.host.is_none() && !waits {
            // Its file of events may be new, and NFS remember that there was none.
            look_again(&self.work.join(job::LOG));
        }
        self.is_stranger = seen.is_none() && !is_gone;
        if seen.is_none() && is_at_work(self.work) {
            self.warn_once("unknown", report, || {
                "Slurm does not know it here, but it holds its lock: it is followed by what it reports".into()
            });
            self.over = None;
            return None;
        }
        if let Some(seen) = &seen {
            self.show(seen, report);
            if let Some(end) = self.hindered(seen, report).await {
                return Some(end);
            }
            if !seen.is_over() {
                self.over = None;
                self.check_lock(seen, report);
                return None;
            }
        }
        let over = *self.over.get_or_insert_with(Instant::now);
        let well = seen.as_ref().is_some_and(|seen| seen.is("COMPLETED"));
        // What it has said may still be on its way.
        let is_mute = self.tail.host.is_none();
        let wait = match (well, is_mute) {
            (true, _) => ARRIVES,
            (false, true) => FAILED_ARRIVES,
            (false, false) => TICK,
        };
        if over.elapsed() < wait {
            return None;
        }
        let ended = Ended {
            job: &self.job,
            submission: self.submission,
            exit: if self.is_stranger { None } else { exit_code(&self.job).await },
            seen: seen.as_ref(),
            by_us: self.sent != StopSignal::None,
            said: match (&self.tail.ended, &self.tail.host) {
                (Some(Outcome::Cancelled), _) => Said::Stopped,
                (_, Some(_)) => Said::Started,
                (_, None) => Said::Nothing,
            },
            progress: self.tail.progress.as_ref(),
            log_says_memory: says_memory(self.work, &self.job),
        };
        let end = ended.end();
        if seen.as_ref().is_some_and(|seen| seen.is("PREEMPTED")) {
            // Slurm may put it back into its queue.
            let _ = scancel(&self.job, &[]).await;
        }
        Some(end)
    }

    /// Whether what Slurm says of a job of this number is about this one. `sacct` cuts names off.
    fn is_own(&self, seen: &Seen) -> bool {
        const CUT: usize = 120;
        let own = &self.submission.name;
        seen.name.as_ref().is_none_or(|name| name == own || (name.len() >= CUT && own.starts_with(name.as_str())))
    }

    /// Shows where the job is, if that is new.
    fn show(&mut self, seen: &Seen, report: &mut impl FnMut(Report)) {
        let text = format!("{}: {}", self.job, seen.words());
        if self.shown.as_ref() == Some(&text) || seen.is_over() {
            return;
        }
        if seen.is("PENDING") {
            // Once it runs, the log is its own.
            add_to_log(self.work, &text);
        }
        report(Report::State(text.clone()));
        self.shown = Some(text);
    }

    /// Ends a job that can never start, and warns of what may keep it from starting.
    async fn hindered(&mut self, seen: &Seen, report: &mut impl FnMut(Report)) -> Option<End> {
        let Hindrance { never, what, help } = seen.hindrance()?;
        let reason = seen.reason.as_deref().unwrap_or_default();
        if !never {
            self.warn_once("hindered", report, || format!("it may not start: {what} ({reason}); {help}"));
            return None;
        }
        let _ = scancel(&self.job, &[]).await;
        let message = format!("{} can never start: {what} ({reason})\nit asks for {}", self.job, self.submission.asked);
        Some(End::Over(Outcome::Failed { message, help: Some(help.into()), transient: false }))
    }

    /// Tells the job to stop, or cancels it. False if Slurm can't be told.
    async fn tell(&mut self, signal: StopSignal, report: &mut impl FnMut(Report)) -> bool {
        self.sent = signal;
        // Also for a job that starts just now, or that Slurm is not told of.
        let _ = fs::write(self.submission.stop(self.work), "");
        let told = if self.is_stranger {
            Err("it is not on this cluster".into())
        } else if signal == StopSignal::Kill {
            scancel(&self.job, &[]).await
        } else {
            let waiting = scancel(&self.job, &["--state=PENDING"]).await;
            waiting.and(scancel(&self.job, &["--batch", "--signal=TERM"]).await)
        };
        let is_told = told.is_ok();
        if let Err(error) = told {
            self.warn_once("tell", report, || format!("Slurm can't pass on that it is to stop: {error}"));
        } else if signal == StopSignal::Kill {
            self.cancelled = Some(Instant::now());
        }
        self.slurm.queue.hurry();
        is_told
    }

    /// Warns if the lock that a running job holds is not seen here.
    fn check_lock(&mut self, seen: &Seen, report: &mut impl FnMut(Report)) {
        let works = seen.is("RUNNING") && self.tail.progress.is_some() && self.tail.ended.is_none();
        let is_free = || File::open(self.work.join(job::LOCK)).is_ok_and(|lock| lock.try_lock_shared().is_ok());
        self.unlocked = if works && is_free() { self.unlocked + 1 } else { 0 };
        if self.unlocked >= LOOKS {
            let node = seen.node.clone().unwrap_or_else(|| "its node".into());
            self.warn_once("lock", report, || {
                format!(
                    "the lock that it holds on {node} is not seen here: nothing keeps two runs from working on one stage; use a file \
                     system whose locks reach all machines (docs/CLUSTER.md)"
                )
            });
        }
    }

    fn warn_once(&mut self, about: &'static str, report: &mut impl FnMut(Report), message: impl FnOnce() -> String) {
        if self.warned.insert(about) {
            report(Report::Event(Event::Warning { message: message() }));
        }
    }
}

/// Waits for a signal that differs from the one that was sent last.
pub(super) async fn changed(stop: &mut watch::Receiver<StopSignal>, sent: StopSignal) -> StopSignal {
    match stop.wait_for(|now| *now != sent).await.map(|now| *now) {
        Ok(signal) => signal,
        // No more signals can come.
        Err(_) => std::future::pending().await,
    }
}

/// Adds a line to the stage's log while no job writes into it.
pub(super) fn add_to_log(work: &Path, text: &str) {
    let log = OpenOptions::new().create(true).append(true).open(work.join(job::LOG));
    let line = format!("{} {}\n", jiff::Timestamp::now(), text.escape_debug());
    // If this fails, the display has it all the same.
    let _ = log.and_then(|mut log| log.write_all(line.as_bytes()));
}

/// What the log says when a job was submitted.
pub(super) fn submitted_as(job: &JobId) -> String {
    format!("submitted as {job}")
}

/// Whether the log says that Slurm has ended this job because of its memory.
fn says_memory(work: &Path, job: &JobId) -> bool {
    const BYTES: u64 = 8192;
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(work.join(job::LOG))?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(BYTES)))?;
        let mut bytes = Vec::new();
        file.take(BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    // The log also has what earlier jobs wrote.
    let own = text.lines().rev().take_while(|line| !line.ends_with(&submitted_as(job)));
    let of_slurm =
        |line: &str| line.starts_with("slurmstepd") && (line.contains("oom-kill") || line.contains("oom_kill"));
    own.into_iter().any(of_slurm)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_log_tells_of_the_memory_of_this_job_only() {
        let folder = tempfile::tempdir().unwrap();
        let work = folder.path();
        let job = |number| JobId { number, element: None, cluster: None };
        let killed = "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=1.batch. Some of your processes may have been killed\n";
        assert!(!says_memory(work, &job(1)), "there is no log");
        add_to_log(work, &submitted_as(&job(1)));
        let mut log = OpenOptions::new().append(true).open(work.join(job::LOG)).unwrap();
        log.write_all(b"a stage says oom-kill\n\xff\xfe\n").unwrap();
        assert!(!says_memory(work, &job(1)));
        log.write_all(killed.as_bytes()).unwrap();
        assert!(says_memory(work, &job(1)));
        add_to_log(work, &submitted_as(&job(2)));
        assert!(!says_memory(work, &job(2)));
    }
}
