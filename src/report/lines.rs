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
use crate::scheduler::{Exchange, MissReason, RunEvent, Start};

/// How often the progress of a running stage is printed.
const INTERVAL: Duration = Duration::from_secs(5);

/// Plain lines on standard error, the final table on standard output.
pub(super) struct Lines {
    quiet: bool,
    rates: HashMap<String, Rate>,
    /// When the sending of results was last shown.
    sending: Option<Instant>,
}

impl Lines {
    pub(super) fn new(quiet: bool) -> Self {
        Self { quiet, rates: HashMap::new(), sending: None }
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
            RunEvent::Sending { .. } if self.sending.get_or_insert_with(Instant::now).elapsed() < INTERVAL => {}
            _ => {
                if matches!(event, RunEvent::Sending { .. }) {
                    self.sending = Some(Instant::now());
                }
                if let Some(text) = describe(event) {
                    eprint(&text);
                }
            }
        }
    }
}

/// Measures the speed of a stage since it was started or resumed.
pub(super) struct Rate {
    start: Instant,
    first: u64,
    reported: Instant,
}

impl Rate {
    /// From the moment when `first` units are done: they were before.
    pub(super) fn new(first: u64) -> Self {
        Self { start: Instant::now(), first, reported: Instant::now() }
    }

    /// What is done now, after the time since the start.
    pub(super) fn describe(&self, progress: &Progress) -> String {
        describe_after(progress, self.first, self.start.elapsed().as_secs_f64())
    }
}

/// `120/400 steps, loss 1.234, 20 s left, 14.2/s`: what is most wanted first, where a line may be cut. The first `first` units took no
/// part of the `seconds`.
fn describe_after(progress: &Progress, first: u64, seconds: f64) -> String {
    let rate = progress.done.saturating_sub(first) as f64 / seconds.max(1e-9);
    let mut text = done(progress) + &values(progress);
    if rate > 0.0 {
        if progress.total > progress.done {
            let _ = write!(text, ", {} left", units::duration((progress.total - progress.done) as f64 / rate));
        }
        let _ = match progress.unit.as_str() {
            BYTES => write!(text, ", {}/s", units::bytes(rate as u64)),
            _ => write!(text, ", {}/s", units::figure(rate)),
        };
    }
    text
}

/// `8 of 17 stages done, about 4 min left (2 unknown)`: the time of two of the stages is not known.
pub(super) fn outlook(done: usize, stages: usize, seconds: Option<f64>, untimed: usize) -> String {
    let mut text = format!("{done} of {stages} stages done");
    if let Some(seconds) = seconds {
        let _ = write!(text, ", {} left", units::about(seconds));
        if untimed > 0 {
            let _ = write!(text, " ({untimed} unknown)");
        }
    }
    text
}

/// How far sending results is.
pub(super) fn sending(results: usize, done: u64, total: u64) -> String {
    let results = units::count(results, "result");
    format!(
        "pushing {results} to the remote cache: {} of {} (Ctrl-C leaves the rest to the next run)",
        units::bytes(done),
        units::bytes(total)
    )
}

/// What was exchanged with a remote cache.
fn exchanged(exchange: &Exchange) -> String {
    let Exchange { remote, pulled, pulled_bytes, sent, sent_bytes, unsent, unusable } = exchange;
    let results = |count: &usize| units::count(*count, "result");
    let mut parts = Vec::new();
    parts.extend((*pulled > 0).then(|| format!("pulled {} ({})", results(pulled), units::bytes(*pulled_bytes))));
    parts.extend((*sent > 0).then(|| format!("pushed {} ({})", results(sent), units::bytes(*sent_bytes))));
    parts.extend((*unsent > 0).then(|| format!("{} left for the next run to push", results(unsent))));
    parts.extend((*unusable > 0).then(|| format!("{} there could not be used", results(unusable))));
    format!("{DIM}{}: {}{DIM:#}", one_line(remote), parts.join(", "))
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
        RunEvent::Pulling { stage, bytes, from } => {
            format!("{stage}: pulling {} from {}", units::bytes(*bytes), one_line(from))
        }
        RunEvent::Pulled { stage, bytes, files, from } => format!(
            "{stage}: {GOOD}pulled{GOOD:#} {} in {} from {}",
            units::bytes(*bytes),
            units::files(*files as u64),
            one_line(from)
        ),
        RunEvent::Sending { results, done, total, .. } => sending(*results, *done, *total),
        RunEvent::Remote(exchange) => exchanged(exchange),
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
        RunEvent::Hit { .. }
        | RunEvent::Started { .. }
        | RunEvent::Progress { .. }
        | RunEvent::Outlook { .. }
        | RunEvent::Ended { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_is_left_is_said_as_far_as_it_is_known_and_fits_60_columns() {
        assert_eq!(outlook(8, 17, Some(231.0), 0), "8 of 17 stages done, about 4 min left");
        assert_eq!(outlook(8, 17, None, 9), "8 of 17 stages done");
        assert_eq!(outlook(0, 2, Some(3.0), 1), "0 of 2 stages done, a few seconds left (1 unknown)");
        assert!(outlook(88, 170, Some(5999.0), 40).chars().count() <= 60, "{}", outlook(88, 170, Some(5999.0), 40));
    }

    #[test]
    fn what_was_done_before_a_resume_counts_for_no_speed() {
        let mut now = Progress {
            done: 120,
            total: 150,
            unit: "steps".into(),
            values: BTreeMap::from([("loss".to_string(), 0.5)]),
        };
        assert_eq!(describe_after(&now, 100, 4.0), "120/150 steps, loss 0.5, 6.0 s left, 5/s");
        assert_eq!(describe_after(&now, 120, 0.2), "120/150 steps, loss 0.5");
        (now.total, now.unit) = (0, BYTES.into());
        assert_eq!(describe_after(&now, 0, 1.0), "120 B, loss 0.5, 120 B/s");
    }
}
