//! All output for users and programs. The only layer that prints. Independent of how the results are computed.

mod answer;
mod answers;
mod cache;
mod card;
mod chat;
mod compare;
mod console;
mod detached;
mod diagnostics;
mod diff;
mod doctor;
mod foreign;
mod graph;
mod json;
mod kinds;
mod lines;
mod logging;
mod page;
mod plan;
mod print;
mod prompt;
mod published;
mod remote;
mod reporter;
mod runs;
mod schema;
mod served;
mod share;
mod show;
mod status;
mod study;
mod style;
mod summary;
mod svg;
mod table;
mod units;
mod why;

use tracing::{Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt,
};

pub(crate) use answer::{Answer, answer, part_of_answer};
pub(crate) use answers::{AnswerFilter, answers};
pub(crate) use cache::{Bar, gc, rebuilt, stats, verify};
pub(crate) use card::{CARD_MARK, Card, CardScore, CardSource, CardStep, HIDDEN, Licence, card};
pub(crate) use chat::{cautions, reply, trouble};
pub(crate) use compare::{CompareRow, Comparison, compare};
pub(crate) use detached::{Detached, Runner, detached};
pub(crate) use diagnostics::failure;
pub(crate) use diff::{Differences, diff};
pub(crate) use doctor::{Checkup, Disk, Versions, doctor};
pub(crate) use graph::{GraphFormat, graph};
pub(crate) use kinds::{keys, kind, kind_as_json};
pub(crate) use lines::progress;
pub(crate) use page::{live_html, page_html, page_json};
pub(crate) use plan::plan;
pub(crate) use print::{ended, note, page_written, print, print_log, print_raw, remark};
pub(crate) use prompt::{Line, Lines};
pub(crate) use published::{Format, ModelRow, Score, no_results, published, published_json};
pub(crate) use remote::{RemotePull, RemotePush, pulled_all, pulled_stage, pushed_all, remote_gc, remote_stats};
pub(crate) use reporter::Reporter;
pub(crate) use runs::{differences, run_as_json, runs};
pub(crate) use schema::{KindKeys, schema};
pub(crate) use served::{Request, listening, request, watched, watching};
pub(crate) use share::{Pushed, exported, outlook_of_push, pushed};
pub(crate) use show::receipt;
pub(crate) use status::{StageStatus, Status, finished, status};
pub(crate) use study::{StudyPoint, studies};
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
pub(crate) fn start_tracing(verbose: u8, in_stage: bool) {
    let default = match verbose {
        // Whoever waits for a request outside of a stage is told of its failures in other words.
        0 if !in_stage => "warn,sled=error,imp_stages::net=error",
        // What sled finds half-written after a kill, it writes anew; a damaged index is built again.
        0 => "warn,sled=error,imp_stages=info,imp_flow::executor=info",
        1 => "info",
        _ => "debug,sled=info",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    subscriber(filter, std::io::stderr).init();
}

/// Writes what passes `filter`, except what may contain a token.
fn subscriber(
    filter: EnvFilter,
    writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static,
) -> impl Subscriber + Send + Sync {
    let written = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let written = written.event_format(logging::LogLine).finish();
    written.with(filter_fn(|event| *event.level() < Level::TRACE || !traces_secrets(event.target())))
}

/// Whether a module's traces show the bytes of requests, and so the token in them.
fn traces_secrets(target: &str) -> bool {
    let package = target.split("::").next().unwrap_or_default();
    ["ureq", "ureq_proto", "rustls"].contains(&package)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex, PoisonError},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_setting_logs_the_bytes_of_requests() {
        let log = Log::default();
        let writer = log.clone();
        let filter = EnvFilter::new("trace,ureq::unversioned=trace,ureq_proto[]=trace");
        tracing::subscriber::with_default(subscriber(filter, move || writer.clone()), || {
            tracing::trace!(target: "ureq::unversioned::transport", "secret 1");
            tracing::trace!(target: "ureq_proto::util", "secret 2");
            tracing::trace!(target: "rustls", "secret 3");
            tracing::debug!(target: "ureq::run", "a request");
            tracing::trace!(target: "imp_stages::net", "a trace");
        });
        let bytes = log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("a request") && text.contains("a trace"), "{text}");
    }
}
