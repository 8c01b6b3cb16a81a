//! Shows a run as plain lines, for pipes, files and `--quiet`. The texts are shared with the console.

use std::{
    collections::HashMap,
    fmt::Write,
    time::{Duration, Instant},
};

use imp_stages::contract::event::{BYTES, Progress};

use super::{
    foreign::{indented, one_line},
    print::{eprint, print},
    reporter::Reporter,
    style::{BAD, DIM, GOOD, WARN},
    summary, units,
};
use crate::scheduler::{MissReason, RunEvent, Start};

/// How often the progress of a running stage is printed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Plain lines on standard error, the final table on standard output.
pub(super) struct Lines {
    quiet: bool,
    rates: HashMap<String, Rate>,
}

impl Lines {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, rates: HashMap::new() }
    }

    fn progress(&mut self, stage: &str, progress: &Progress) {
        let rate = self.rates.entry(stage.into()).or_insert_with(|| Rate::new(progress.done));
        if rate.reported.elapsed() >= INTERVAL {
            rate.reported = Instant::now();
            eprint(&format!("{stage}: {}", rate.describe(progress)));
        }
    }
}

impl Reporter for Lines {
    fn on(&mut self, event: &RunEvent<'_>) {
        if let RunEvent::Running { stage, .. } = event {
            self.rates.remove(*stage);
        }
        match event {
            RunEvent::Progress { stage, progress } if !self.quiet => self.progress(stage, progress),
            RunEvent::Ended { summary } if !self.quiet => print(&summary::summary(summary)),
            event if self.quiet && !matches!(event, RunEvent::Failed { .. } | RunEvent::Warning { .. }) => {}
            _ => {
                if let Some(text) = describe(event) {
                    eprint(&text);
                }
            }
        }
    }
}

/// Measures the speed of a stage since it was started or resumed.
struct Rate {
    start: Instant,
    first: u64,
    reported: Instant,
}

impl Rate {
    fn new(first: u64) -> Self {
        Self { start: Instant::now(), first, reported: Instant::now() }
    }

    /// `120/400 steps, 14.2/s, 20 s left, loss 1.234`.
    fn describe(&self, progress: &Progress) -> String {
        let rate = progress.done.saturating_sub(self.first) as f64 / self.start.elapsed().as_secs_f64().max(1e-9);
        let mut text = done(progress);
        if rate > 0.0 {
            let _ = match progress.unit.as_str() {
                BYTES => write!(text, ", {}/s", units::bytes(rate as u64)),
                _ => write!(text, ", {}/s", units::figure(rate)),
            };
            if progress.total > progress.done {
                let _ = write!(text, ", {} left", units::duration((progress.total - progress.done) as f64 / rate));
            }
        }
        text + &values(progress)
    }
}

/// `120/400 steps`.
fn done(progress: &Progress) -> String {
    match (progress.unit.as_str(), progress.total) {
        ("bytes", 0) => units::bytes(progress.done),
        ("bytes", total) => format!("{} of {}", units::bytes(progress.done), units::bytes(total)),
        (unit, 0) => format!("{} {unit}", progress.done),
        (unit, total) => format!("{}/{total} {unit}", progress.done),
    }
}

/// `120/400 steps, loss 1.234`.
pub(crate) fn progress(progress: &Progress) -> String {
    done(progress) + &values(progress)
}

/// `, loss 1.234`.
pub(super) fn values(progress: &Progress) -> String {
    progress
        .values
        .iter()
        .fold(String::new(), |text, (name, value)| format!("{text}, {name} {}", units::figure(*value)))
}

/// The text for an event. `None` for events that have no text or are shown differently.
pub(super) fn describe(event: &RunEvent<'_>) -> Option<String> {
    Some(match event {
        RunEvent::Waiting { stage } => format!("{stage}: waiting for another run that is making the same artifact"),
        RunEvent::Running { stage, reason, resumed, start, .. } => {
            let how = match (start, resumed) {
                (Start::Here, false) => "started",
                (Start::Here, true) => "resumed from its checkpoint",
                (Start::Submitted, false) => "submitting it to Slurm",
                (Start::Submitted, true) => "submitting it to Slurm, to resume from its checkpoint",
                (Start::Found, _) => "looking for the job of an earlier run",
            };
            match reason {
                MissReason::New => format!("{stage}: {how}"),
                MissReason::Forced => format!("{stage}: {how} {DIM}(--force){DIM:#}"),
                reason => format!("{stage}: {how} {DIM}({reason}){DIM:#}"),
            }
        }
        RunEvent::State { stage, state } => format!("{stage}: {}", one_line(state)),
        RunEvent::Note { message, .. } => indented(message, "  "),
        RunEvent::Warning { stage, message } => {
            format!("{stage}: {WARN}warning:{WARN:#} {}", indented(message, "  "))
        }
        RunEvent::Finished { stage, hit, .. } => format!(
            "{stage}: {GOOD}done{GOOD:#} in {}, {} in {}",
            units::duration(hit.seconds),
            units::bytes(hit.output.bytes),
            units::files(hit.output.files),
        ),
        RunEvent::Retrying { stage, message, seconds } => {
            let message = indented(message, "  ");
            format!("{stage}: {WARN}{message}{WARN:#}; retrying in {}", units::duration(*seconds))
        }
        RunEvent::Failed { stage, message, help, log, tail } => {
            let mut text = format!("{BAD}error:{BAD:#} stage `{stage}`: {}", indented(message, ""));
            for line in *tail {
                let _ = write!(text, "\n  {DIM}| {}{DIM:#}", one_line(line));
            }
            if let Some(help) = help {
                let _ = write!(text, "\n  help: {}", indented(help, "  "));
            }
            if let Some(log) = log {
                let _ = write!(text, "\n  log: {}", log.display());
            }
            text
        }
        RunEvent::Cancelled { stage } => format!("{stage}: stopped"),
        RunEvent::Skipped { stage, because } => format!("{stage}: skipped, because `{because}` failed"),
        RunEvent::Stopping { at_once: false } => {
            "Stopping: saving checkpoints ... (press Ctrl-C again to quit now and lose the steps since the last checkpoint)".into()
        }
        RunEvent::Stopping { at_once: true } => "Quit.".into(),
        RunEvent::Hit { .. } | RunEvent::Started { .. } | RunEvent::Progress { .. } | RunEvent::Ended { .. } => {
            return None;
        }
    })
}
