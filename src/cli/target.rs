//! What verbs work on: a pipeline with changes, some of its stages, one stage, a device.

use std::path::PathBuf;

use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use imp_stages::contract::device::DeviceChoice;
use serde::de::DeserializeOwned;

/// The pipeline file of a folder, which `init` writes and verbs read that name no other.
pub(crate) const USUAL_FILE: &str = "pipeline.toml";

/// Reads one of the `names` that values of a type have in pipelines.
pub(super) fn one_of<T: DeserializeOwned + Clone + Send + Sync + 'static>(
    names: impl IntoIterator<Item = &'static str>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value(name.into()))
}

/// Changes of keys on the command line.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Overrides {
    /// Change a key of the pipeline (repeatable); `sweep` takes several values, separated by commas
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    #[command(flatten)]
    pub(crate) place: DeviceArgs,
}

/// Where stages compute.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct DeviceArgs {
    /// Where all stages compute: `auto`, `cpu` or `cuda` [default: as the stages say, else `device` in imp-flow.toml, else auto]
    #[arg(
        long,
        value_name = "DEVICE",
        env = "IMP_FLOW_DEVICE",
        hide_possible_values = true,
        value_parser = one_of::<DeviceChoice>(DeviceChoice::NAMES)
    )]
    pub(crate) device: Option<DeviceChoice>,
}

#[derive(Debug, Args)]
pub(crate) struct PipelineArgs {
    /// Pipeline file [default: pipeline.toml; without one, the pipeline that ran last, with its --set changes]
    #[arg(value_name = "PIPELINE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: Overrides,
    #[command(flatten)]
    pub(crate) select: SelectArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Pipeline file [default: pipeline.toml]
    #[arg(value_name = "PIPELINE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: Overrides,
    #[command(flatten)]
    pub(crate) select: SelectArgs,
    #[command(flatten)]
    pub(crate) place: DeviceArgs,
    /// After a failure, still run the stages that don't need the failed one
    #[arg(short, long)]
    pub(crate) keep_going: bool,
    /// Run at most N stages at once
    #[arg(short, long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) jobs: usize,
    /// Only show what would run and why
    #[arg(short = 'n', long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) detach: DetachArgs,
    /// Name of this run; `cache gc` keeps what named runs use
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,
    /// Run this shell command at the end, also after a failure or Ctrl-C; it changes no exit code
    #[arg(long, value_name = "COMMAND", conflicts_with = "dry_run")]
    pub(crate) on_end: Option<String>,
    /// Repeat a past run from its record
    #[arg(long, value_name = "RUN", conflicts_with_all = ["file", "overrides"])]
    pub(crate) from_run: Option<String>,
}

/// Whether a run stays with its terminal.
#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// Let the run go on without this terminal: in the background, or as a job where stages are jobs of Slurm
    #[arg(long, conflicts_with = "dry_run")]
    pub(crate) detach: bool,
    /// This is the run that goes on
    #[arg(long, hide = true, conflicts_with = "detach")]
    pub(crate) detached: bool,
}

/// Which stages to run; all by default.
#[derive(Debug, Default, Args)]
pub(crate) struct SelectArgs {
    /// Run only these stages (separated by commas)
    #[arg(long, value_name = "STAGES")]
    pub(crate) only: Vec<String>,
    /// Run these stages and those that they need
    #[arg(long, value_name = "STAGES")]
    pub(crate) until: Vec<String>,
    /// Run these stages and those that need them
    #[arg(long, value_name = "STAGES")]
    pub(crate) from: Vec<String>,
    /// Run these stages again even if they are cached
    #[arg(long, value_name = "STAGES")]
    pub(crate) force: Vec<String>,
}

/// A pipeline; by default the one that ran last.
#[derive(Debug, Args)]
pub(crate) struct TargetArgs {
    /// Pipeline file [default: the one that ran last, with its --set changes]
    #[arg(short = 'p', long = "pipeline", value_name = "PIPELINE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) set: Overrides,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) stage: StageArgs,
    /// Show the answers of an evaluation: question, answer, right answer
    #[arg(long)]
    pub(crate) answers: bool,
    /// Only wrong answers (a score below 0.5)
    #[arg(long, requires = "answers")]
    pub(crate) wrong: bool,
    /// Only answers to questions of this category
    #[arg(long, value_name = "NAME", requires = "answers")]
    pub(crate) category: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StageArgs {
    /// Name of the stage
    #[arg(value_name = "STAGE")]
    pub(crate) stage: String,
    /// Point of a sweep, by its label
    #[arg(long, value_name = "POINT")]
    pub(crate) point: Option<String>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}
