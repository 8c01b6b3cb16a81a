//! The arguments of `imp-flow ask`, `chat` and `serve`.

use std::path::PathBuf;

use clap::Args;
use imp_stages::{
    ask::{Precision, Where},
    contract::device::DeviceChoice,
};

use super::target::one_of;

/// How answers are made.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct AnswerArgs {
    /// Most tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=65536))]
    pub(crate) max_tokens: u32,
    /// Draw tokens at random, the more evenly the higher; 0 always takes the most likely one
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f32,
    /// Draw from the most likely tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub(crate) top_p: f32,
    /// Where the model computes: `cpu`, `cuda` (the first GPU in `CUDA_VISIBLE_DEVICES`), or `auto`, a GPU if one can be used
    #[arg(
        long,
        value_name = "DEVICE",
        env = "IMP_FLOW_DEVICE",
        default_value = "cpu",
        hide_possible_values = true,
        value_parser = one_of::<DeviceChoice>(DeviceChoice::NAMES)
    )]
    device: DeviceChoice,
    /// How exactly it computes: `f32` or `bf16` [default: f32 on the CPU, bf16 on a GPU]
    #[arg(
        long,
        value_name = "PRECISION",
        hide_possible_values = true,
        value_parser = one_of::<Precision>(Precision::NAMES)
    )]
    precision: Option<Precision>,
}

impl AnswerArgs {
    /// Where the model computes.
    pub(crate) fn place(&self) -> Where {
        Where { device: self.device, precision: self.precision }
    }
}

#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// Folder of a model, or a stage of the last run that made one
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// What to ask
    #[arg(value_name = "QUESTION")]
    pub(crate) question: String,
    /// Image that the question is about
    #[arg(short, long, value_name = "FILE")]
    pub(crate) image: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// Folder of a model, or a stage of the last run that made one
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Image that the first question is about (repeatable)
    #[arg(short, long = "image", value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    /// Replace the system text of the model's template
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Folder of a model, or a stage of the last run that made one
    #[arg(value_name = "MODEL")]
    pub(crate) model: PathBuf,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) host: String,
    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// File that holds the key which clients must send [default: the variable `IMP_FLOW_API_KEY`, else no key]
    #[arg(long, value_name = "FILE", conflicts_with = "no_api_key")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// Serve anyone who reaches an address that is not this machine's own
    #[arg(long)]
    pub(crate) no_api_key: bool,
    /// Most requests that wait or are answered at a time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) queue: u32,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}
