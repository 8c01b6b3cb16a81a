//! Everything that people and programs read. The only place that prints; knows nothing of how things are done.

mod answers;
mod cache;
mod compare;
mod console;
mod diagnostics;
mod eval;
mod graph;
mod json;
mod lines;
mod overview;
mod svg;
mod table;
mod units;

use std::io::{IsTerminal, Write};

use tracing_subscriber::EnvFilter;

pub(crate) use answers::{Standing, StandingState, differences, made, receipt, runs, status, why};
pub(crate) use cache::{Bar, checkup, stats, thrown};
pub(crate) use compare::{CompareRow, Comparison, Order, compare};
pub(crate) use diagnostics::failure;
pub(crate) use eval::{EvalRow, Format, Score, eval, is_whole, no_eval};
pub(crate) use graph::graph;
pub(crate) use lines::progress;
pub(crate) use overview::{kind, plan};

use crate::{cli::Common, scheduler::RunEvent};

/// Shows a run as it goes.
pub(crate) trait Reporter {
    /// Called for everything that happens.
    fn on(&mut self, event: &RunEvent<'_>);
}

/// The reporter that suits the terminal and the flags.
pub(crate) fn for_run(common: &Common) -> Box<dyn Reporter> {
    if common.json {
        Box::new(json::Json)
    } else if std::io::stderr().is_terminal() && !common.quiet {
        Box::new(console::Console::new())
    } else {
        Box::new(lines::Lines::new(common.quiet))
    }
}

/// A line on standard output.
pub(crate) fn say(text: &str) {
    say_raw(&format!("{text}\n"));
}

/// Text on standard output that has its own line breaks. Nobody may be listening, or the disk full: that is no reason for a
/// run to end.
pub(crate) fn say_raw(text: &str) {
    let mut out = anstream::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// What a person may want to know, on standard error.
pub(crate) fn hint(text: &str, common: &Common) {
    if !common.quiet && !common.json {
        tell(&format!("{DIM}{text}{DIM:#}", DIM = lines::DIM));
    }
}

/// A line on standard error.
fn tell(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Starts the log of this process on standard error; in a stage's process that is the stage's log.
pub(crate) fn start_tracing(verbose: u8) {
    let default = match verbose {
        0 => "warn,imp_stages=info,imp_flow::executor=info",
        1 => "info",
        _ => "debug,sled=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
