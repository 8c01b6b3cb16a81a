//! The arguments of `imp-flow import`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum ImportVerb {
    /// Write the pipeline of a training script of LLaVA or Imp
    #[command(after_help = "\
Examples:
  imp-flow import llava scripts/v1_5/finetune_lora.sh
  imp-flow import llava finetune_lora.sh -o my.toml --devices 4
  imp-flow import llava finetune_lora_custom.sh --var IMP_MODEL=MILVLG/imp-v1-3b --var VERSION=phi2

The script is read, never run. Variables that it sets are filled in; others keep their `$`, and are named. Each flag that has no
counterpart becomes a comment. Paths stay as they are written, and are relative to the pipeline file then.")]
    Llava(ImportLlavaArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportLlavaArgs {
    /// The script
    #[arg(value_name = "SCRIPT")]
    pub(crate) script: PathBuf,
    /// File to write; an existing file is not changed [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// GPUs that the script runs on, if it does not say it: they multiply the size of a batch, and those of one machine are the stage's
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub(crate) devices: Option<usize>,
    /// Value of a variable of the script (repeatable); `--var 1=VALUE` is its first argument
    #[arg(long = "var", value_name = "NAME=VALUE")]
    pub(crate) variables: Vec<String>,
}
