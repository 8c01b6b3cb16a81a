//! The program: parses the command line, runs the verb, and turns its result into an exit code.

#[cfg(not(unix))]
compile_error!("imp-flow needs a Unix system: it uses file locks, links, signals and process groups");

mod artifacts;
mod cli;
mod commands;
mod executor;
mod failure;
#[cfg(test)]
mod fuzzing;
mod machine;
mod pipeline;
mod pool;
mod remote;
mod report;
mod scheduler;
mod serve;
mod settings;
mod store;
mod view;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    report::start_tracing(cli.common.verbose, matches!(cli.verb, cli::Verb::Stage { .. }));
    survive_file_size_limit();
    let result = match cli.verb {
        cli::Verb::Run(args) => commands::run(&args, false, &cli.common),
        cli::Verb::Sweep(args) => commands::run(&args, true, &cli.common),
        cli::Verb::Plan(args) => commands::plan(&args, &cli.common),
        cli::Verb::Why(args) => commands::why(&args, &cli.common),
        cli::Verb::Status { pipeline, target } => commands::status(&target.or_file(pipeline), &cli.common),
        cli::Verb::Show(args) => commands::show(&args, &cli.common),
        cli::Verb::Log { stage, follow } => commands::log(&stage, follow, &cli.common),
        cli::Verb::Graph { pipeline, format } => commands::graph(&pipeline, format, &cli.common),
        cli::Verb::Runs => commands::runs(&cli.common),
        cli::Verb::Compare(args) => commands::compare(&args, &cli.common),
        cli::Verb::Diff(args) => commands::diff(&args, &cli.common),
        cli::Verb::Cache(verb) => commands::cache(&verb, &cli.common),
        cli::Verb::Report { what: Some(cli::ReportVerb::Eval(args)), .. } => commands::report_eval(&args, &cli.common),
        cli::Verb::Report { what: Some(cli::ReportVerb::Study(args)), .. } => {
            commands::report_study(&args, &cli.common)
        }
        cli::Verb::Report { what: None, page } => commands::page(&page, &cli.common),
        cli::Verb::Watch(args) => commands::watch(&args, &cli.common),
        cli::Verb::Init { place, template } => commands::init(&place, template),
        cli::Verb::Import(cli::ImportVerb::Llava(args)) => commands::import_llava(&args, &cli.common),
        cli::Verb::Kinds { kind } => commands::kinds(kind.as_deref(), &cli.common),
        cli::Verb::Schema => Ok(commands::schema()),
        cli::Verb::Completions { shell } => Ok(commands::completions(shell)),
        cli::Verb::Man { to } => commands::man(&to),
        cli::Verb::Ask(args) => commands::ask(&args, &cli.common),
        cli::Verb::Chat(args) => commands::chat(&args, &cli.common),
        cli::Verb::Serve(args) => commands::serve(&args, &cli.common),
        cli::Verb::Export(args) => commands::export(&args, &cli.common),
        cli::Verb::Pull(args) => commands::pull(&args, &cli.common),
        cli::Verb::Push(args) => commands::push(&args, &cli.common),
        cli::Verb::Doctor(args) => commands::doctor(args, &cli.common),
        cli::Verb::Stage { job, attempt, output } => {
            return executor::run_job(&job, attempt.as_deref(), output.as_deref().map(std::path::Path::new));
        }
    };
    report::ended(result.unwrap_or_else(|failure| report::failure(&failure)))
}

/// Makes a write beyond the limit on the size of files (`ulimit -f`) fail with an error that can be shown. By default it ends the
/// process with SIGXFSZ. Holds for the runner and, since both are this program, for the processes of stages.
fn survive_file_size_limit() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = || -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _context = runtime.enter();
        // The handler stays when the listener and the runtime are gone.
        signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw())).map(drop)
    };
    if let Err(error) = listen() {
        tracing::debug!("can't handle SIGXFSZ: {error}");
    }
}
