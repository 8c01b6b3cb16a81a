//! The command lines of `imp-flow export` and `imp-flow push`.

use std::path::PathBuf;

use clap::Args;

use super::StageArgs;

/// Which result of a stage leaves the cache.
#[derive(Debug, Args)]
pub(crate) struct ResultArgs {
    #[command(flatten)]
    pub(crate) stage: StageArgs,
    /// Take the last result of the stage, although it is not that of its present configuration
    #[arg(long)]
    pub(crate) last: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(crate) result: ResultArgs,
    /// New or empty folder for the files
    #[arg(long, value_name = "FOLDER")]
    pub(crate) to: PathBuf,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) result: ResultArgs,
    /// Repository: `hf://OWNER/REPO`, or `hf://OWNER/REPO@BRANCH`
    #[arg(value_name = "REPOSITORY")]
    pub(crate) to: String,
    /// Push; without it, only what would be pushed is shown
    #[arg(long)]
    pub(crate) yes: bool,
    /// If the repository does not exist, make a private one
    #[arg(long)]
    pub(crate) private: bool,
    /// Remove files that are in the repository only
    #[arg(long)]
    pub(crate) delete: bool,
    /// Only print the card (README.md) that would be pushed
    #[arg(long, conflicts_with = "yes")]
    pub(crate) card: bool,
    /// First line of the commit
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
}
