//! The command line. Definitions only: what a verb does is in `commands/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Declarative pipelines for small multimodal language models: a TOML file declares stages, each is cached
/// by the content of everything that decides its result, and only what is missing runs.
#[derive(Debug, Parser)]
#[command(
    name = "imp-flow",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  imp-flow run pipelines/tiny.toml       download, train, quantize and measure a tiny model on this CPU
  imp-flow plan pipelines/tiny.toml      what would run, and why
  imp-flow init my.toml                  a commented pipeline to start from

Exit codes: 0 done, 1 a stage failed, 2 the command line or the pipeline is wrong, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// What holds for every verb.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// Folder of the content-addressed store [default: cache]
    #[arg(long, global = true, value_name = "FOLDER", env = "IMP_FLOW_CACHE")]
    pub(crate) cache: Option<PathBuf>,
    /// Folder of the links to artifacts [default: artifacts]
    #[arg(long, global = true, value_name = "FOLDER", env = "IMP_FLOW_ARTIFACTS")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Report as JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Say only what went wrong
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Say more (-v, -vv); `RUST_LOG` chooses by module
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run what is not in the cache
    #[command(after_help = "\
Examples:
  imp-flow run pipelines/tiny.toml
  imp-flow run pipelines/tiny.toml --set stages.finetune.learning_rate=5e-4

Ctrl-C saves checkpoints and stops; the same command goes on from there.")]
    Run(PipelineArgs),
    /// Say what would run, and why
    #[command(after_help = "\
Examples:
  imp-flow plan pipelines/tiny.toml
  imp-flow plan pipelines/tiny.toml --set stages.lora.lora.rank=16")]
    Plan(PipelineArgs),
    /// Show what cached stages have found out
    Report {
        #[command(subcommand)]
        what: ReportVerb,
    },
    /// Write a commented pipeline to start from
    #[command(after_help = "\
Examples:
  imp-flow init                 writes pipeline.toml
  imp-flow init pipelines/my.toml")]
    Init {
        /// The file to write; an existing one is left alone
        #[arg(default_value = "pipeline.toml")]
        file: PathBuf,
    },
    /// List the kinds of stage
    #[command(after_help = "\
Example:
  imp-flow kinds")]
    Kinds,
    /// Run one stage (used by imp-flow itself)
    #[command(name = "__stage", hide = true)]
    Stage {
        /// The job file.
        job: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReportVerb {
    /// The models of pipelines on the nine benchmarks, beside the published Imps
    #[command(after_help = "\
Examples:
  imp-flow report eval pipelines/v1_3b.toml pipelines/v1_5_3b.toml
  imp-flow report eval pipelines/v1_3b.toml --markdown > table.md")]
    Eval(ReportEvalArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ReportEvalArgs {
    /// The pipeline files; without one, the published figures alone
    #[arg(value_name = "PIPELINE")]
    pub(crate) files: Vec<PathBuf>,
    /// Change a key in each of them (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
    /// Write a Markdown table
    #[arg(long)]
    pub(crate) markdown: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) file: PathBuf,
    /// Change a key for this time (repeatable)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}
