//! The arguments of `imp-flow report` and `imp-flow watch`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// The page of runs.
#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// Runs, by id or name, or pipeline files [default: the last run]
    #[arg(value_name = "RUN|PIPELINE")]
    pub(crate) runs: Vec<String>,
    /// File to write; `-` for standard output [default: report.html beside the artifacts]
    #[arg(short, long, value_name = "FILE", visible_alias = "html")]
    pub(crate) output: Option<PathBuf>,
}

/// The page of a run that goes on.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// A pipeline file, or a run by id or name [default: the last run of the cache, and every run after it]
    #[arg(value_name = "PIPELINE|RUN")]
    pub(crate) run: Option<String>,
    /// Port on this machine [default: any that is free]
    #[arg(long, value_name = "PORT", default_value_t = 0, hide_default_value = true)]
    pub(crate) port: u16,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReportVerb {
    /// Compare the models of pipelines with the published Imp models on nine benchmarks
    #[command(after_help = "\
Examples:
  imp-flow report eval pipelines/v1_3b.toml pipelines/v1_5_3b.toml
  imp-flow report eval pipelines/v1_3b.toml --markdown > table.md")]
    Eval(ReportEvalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReportEvalArgs {
    /// Pipeline files; with none, only the published results are shown
    #[arg(value_name = "PIPELINE")]
    pub(crate) files: Vec<PathBuf>,
    /// Change a key of each pipeline (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Print a Markdown table
    #[arg(long)]
    pub(crate) markdown: bool,
}
