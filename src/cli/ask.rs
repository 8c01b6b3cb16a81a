//! The arguments of `imp-flow ask`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Folder of a model
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// What to ask
    #[arg(value_name = "QUESTION")]
    pub(crate) question: String,
    /// Image that the question is about
    #[arg(short, long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    /// Most tokens of the answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_tokens: u32,
    /// Draw tokens at random, the more evenly the higher; 0 always takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Draw from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}
