//! The command line. Definitions only: what a verb does is in `commands/`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

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
  imp-flow why lora                      why a stage of the last run ran, or would run
  imp-flow sweep pipelines/tiny.toml --set stages.lora.learning_rate=5e-4,1e-3
  imp-flow compare                       the points of the last sweep in one table
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
  imp-flow run pipelines/tiny.toml --until pretrain       the projector, and what it needs
  imp-flow run pipelines/tiny.toml --force lora           that stage again, and what changes by it
  imp-flow run --from-run 20261125-0042-3fa               what a past run was, once more

Ctrl-C saves checkpoints and stops; the same command goes on from there.")]
    Run(RunArgs),
    /// Run a pipeline with several values for some keys
    #[command(after_help = "\
Examples:
  imp-flow sweep pipelines/sweeps/lora_rank.toml
  imp-flow sweep pipelines/tiny.toml --set stages.lora.learning_rate=5e-4,1e-3,2e-3
  imp-flow sweep pipelines/tiny.toml --set seed=1,2,3 --keep-going

In the file:
  [sweep]                                     # all combinations
  \"vars.lora_rank\" = [64, 128, 256]
  [[sweep.zip]]                               # values that belong together
  \"vars.llm\" = [\"phi\", \"qwen\"]
  \"vars.template\" = [\"phi2\", \"qwen2\"]
  [sweep.random]                              # drawn at random
  count = 20
  \"stages.finetune.learning_rate\" = { log_uniform = [1e-5, 1e-3] }

What points have in common runs once. `imp-flow compare` shows what came out.")]
    Sweep(RunArgs),
    /// Say what would run, and why
    #[command(after_help = "\
Examples:
  imp-flow plan pipelines/tiny.toml
  imp-flow plan pipelines/tiny.toml --set stages.lora.lora.rank=16")]
    Plan(PlanArgs),
    /// Say why a stage ran, or would run
    #[command(after_help = "\
Examples:
  imp-flow why lora                                  of the pipeline that ran last
  imp-flow why lora --pipeline pipelines/tiny.toml
  imp-flow why finetune --point lora_rank=64         of a point of a sweep")]
    Why(StageArgs),
    /// Say where the stages of a pipeline stand
    #[command(after_help = "\
Examples:
  imp-flow status
  imp-flow status pipelines/tiny.toml")]
    Status {
        /// The pipeline file [default: that of the last run, with its changes]
        #[arg(value_name = "PIPELINE", conflicts_with = "file")]
        pipeline: Option<PathBuf>,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Show what a stage made, and from what
    #[command(after_help = "\
Example:
  imp-flow show finetune")]
    Show(StageArgs),
    /// Show a stage's log
    #[command(after_help = "\
Examples:
  imp-flow log finetune
  imp-flow log finetune -f       and go on while it runs")]
    Log {
        #[command(flatten)]
        stage: StageArgs,
        /// Go on while the stage runs
        #[arg(short, long)]
        follow: bool,
    },
    /// Draw the stages of a pipeline and where they stand
    #[command(after_help = "\
Examples:
  imp-flow graph pipelines/tiny.toml
  imp-flow graph pipelines/tiny.toml --format svg > tiny.svg
  imp-flow graph pipelines/tiny.toml --format dot | dot -Tpdf -o tiny.pdf")]
    Graph {
        #[command(flatten)]
        pipeline: PlanArgs,
        /// How to draw
        #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
        format: GraphFormat,
    },
    /// List past runs
    #[command(after_help = "\
Examples:
  imp-flow runs
  imp-flow run --from-run ID     do one again")]
    Runs,
    /// Show in one table by what points or runs differ, and what came out
    #[command(after_help = "\
Examples:
  imp-flow compare                             the last sweep or run
  imp-flow compare 20261125-0042-3fa paper     two runs, by id or name
  imp-flow compare --sort pope.accuracy
  imp-flow compare --csv > results.csv")]
    Compare {
        /// Runs, by id or name; the last one if there is none
        #[arg(value_name = "RUN")]
        runs: Vec<String>,
        /// Sort by this metric or parameter, the best first
        #[arg(long, value_name = "COLUMN")]
        sort: Option<String>,
        /// Comma-separated values
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
    /// Look after the cache
    #[command(subcommand)]
    Cache(CacheVerb),
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

#[derive(Debug, Subcommand)]
pub(crate) enum CacheVerb {
    /// How much lies there, and of what
    Stats,
    /// Read everything, and name what is damaged; the next run makes it again
    Verify,
    /// Throw away what the last runs and runs with a name don't need
    #[command(after_help = "\
Examples:
  imp-flow cache gc --dry-run
  imp-flow cache gc --keep 3")]
    Gc {
        /// Keep what so many of each pipeline's last runs need
        #[arg(long, value_name = "N", default_value_t = 5)]
        keep: usize,
        /// Only say what would go
        #[arg(long)]
        dry_run: bool,
    },
    /// Make the index anew
    Rebuild,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    Text,
    Dot,
    Mermaid,
    Svg,
}

/// A pipeline file and what is changed for this time.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Overrides {
    /// Change a key for this time (repeatable); `sweep` tries several values with commas between
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE")]
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) set: Overrides,
    #[command(flatten)]
    pub(crate) select: SelectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The pipeline file
    #[arg(value_name = "PIPELINE", required_unless_present = "from_run")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: Overrides,
    #[command(flatten)]
    pub(crate) select: SelectArgs,
    /// After a failure, still run what doesn't need the failed stage
    #[arg(short, long)]
    pub(crate) keep_going: bool,
    /// Run at most so many stages at once
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) jobs: usize,
    /// Only say what would run, and why
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    /// A name for this run; what it needs is kept by `cache gc`
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// Do a past run again, from its record
    #[arg(long, value_name = "RUN", conflicts_with_all = ["file", "overrides"])]
    pub(crate) from_run: Option<String>,
}

/// Which stages; all if nothing is said.
#[derive(Debug, Default, Args)]
pub(crate) struct SelectArgs {
    /// Run these stages and no others (with commas between)
    #[arg(long, value_name = "STAGES")]
    pub(crate) only: Vec<String>,
    /// Run these stages and what they need
    #[arg(long, value_name = "STAGES")]
    pub(crate) until: Vec<String>,
    /// Run these stages and what needs them
    #[arg(long, value_name = "STAGES")]
    pub(crate) from: Vec<String>,
    /// Run these stages again, though they are cached
    #[arg(long, value_name = "STAGES")]
    pub(crate) force: Vec<String>,
}

/// A pipeline; the one that ran last if none is named.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// The pipeline file [default: that of the last run, with its changes]
    #[arg(short = 'p', long = "pipeline", value_name = "PIPELINE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: Overrides,
}

#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// The stage
    #[arg(value_name = "STAGE")]
    pub(crate) stage: String,
    /// The point of a sweep
    #[arg(long, value_name = "POINT")]
    pub(crate) point: Option<String>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}
