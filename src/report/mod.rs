//! All output for users and programs. The only layer that prints. Independent of how the results are computed.

mod cache;
mod compare;
mod console;
mod diagnostics;
mod graph;
mod json;
mod kinds;
mod lines;
mod plan;
mod print;
mod published;
mod reporter;
mod runs;
mod show;
mod status;
mod style;
mod summary;
mod svg;
mod table;
mod units;
mod why;

use tracing_subscriber::EnvFilter;

pub(crate) use cache::{Bar, gc, stats, verify};
pub(crate) use compare::{CompareRow, Comparison, compare};
pub(crate) use diagnostics::failure;
pub(crate) use graph::{GraphFormat, graph};
pub(crate) use kinds::{keys, kind};
pub(crate) use lines::progress;
pub(crate) use plan::plan;
pub(crate) use print::{note, print, print_raw};
pub(crate) use published::{Format, ModelRow, Score, no_results, published};
pub(crate) use reporter::Reporter;
pub(crate) use runs::{differences, runs};
pub(crate) use show::receipt;
pub(crate) use status::{StageStatus, Status, finished, status};
pub(crate) use style::Style;
pub(crate) use why::why;

/// The reporter for this terminal and these flags.
pub(crate) fn for_run(style: Style) -> Box<dyn Reporter> {
    if style.json {
        return Box::new(json::Json);
    }
    match console::Console::new() {
        Some(console) if !style.quiet => Box::new(console),
        _ => Box::new(lines::Lines::new(style.quiet)),
    }
}

/// Starts logging to standard error, which is the stage's log in the process of a stage.
pub(crate) fn start_tracing(verbose: u8) {
    let default = match verbose {
        0 => "warn,imp_stages=info,imp_flow::executor=info",
        1 => "info",
        _ => "debug,sled=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}
