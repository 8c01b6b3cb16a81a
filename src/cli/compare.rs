//! The command line of `imp-flow compare` and `imp-flow diff`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Runs, by id or name [default: the last run]
    #[arg(value_name = "RUN")]
    pub(crate) runs: Vec<String>,
    /// Sort by this metric (best first) or parameter (ascending)
    #[arg(long, value_name = "COLUMN")]
    pub(crate) sort: Option<String>,
    /// Show all figures
    #[arg(long, conflicts_with = "metrics")]
    pub(crate) all: bool,
    /// Show the figures that match: `pope.*` (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub(crate) metrics: Vec<String>,
    /// Show rows in which this holds, as in `pope.accuracy>80` or `lora.rank=64` (repeatable)
    #[arg(long = "where", value_name = "CONDITION")]
    pub(crate) conditions: Vec<String>,
    /// Print comma-separated values
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// Two runs, the older first, or one, by id or name [default: the last run; one run is compared with the run before it]
    #[arg(value_name = "RUN", num_args = 0..=2)]
    pub(crate) runs: Vec<String>,
}
