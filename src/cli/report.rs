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
    /// Show the published studies of Imp's design, and what sweeps have measured here
    #[command(after_help = "\
For each study (language model, vision encoder, how to finetune, epochs, data) the published figures stand beside those of the
sweep that repeats it: `measured here`, or `not run`. It runs nothing.

Examples:
  imp-flow report study                                    the sweeps in pipelines/sweeps, if they are there
  imp-flow sweep pipelines/sweeps/epochs.toml && imp-flow report study
  imp-flow report study my/epochs.toml --set vars.precision=f32
  imp-flow report study --json > study.json")]
    Study(ReportStudyArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReportStudyArgs {
    /// Sweeps with the `name` of a published one, such as imp-epochs [default: those in pipelines/sweeps]
    #[arg(value_name = "SWEEP")]
    pub(crate) files: Vec<PathBuf>,
    /// Change a key of each sweep (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Print Markdown tables
    #[arg(long)]
    pub(crate) markdown: bool,
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
