//! The command line: definitions only. `commands/` implements the verbs.

mod ask;
mod cache;
mod compare;
mod import;
mod report;
mod share;
mod target;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use ask::{AnswerArgs, AskArgs, ChatArgs, ServeArgs};
pub(crate) use cache::{CacheVerb, OfArgs};
pub(crate) use compare::{CompareArgs, DiffArgs};
pub(crate) use import::{ImportLlavaArgs, ImportVerb};
pub(crate) use report::{PageArgs, ReportEvalArgs, ReportStudyArgs, ReportVerb, WatchArgs};
pub(crate) use share::{ExportArgs, PushArgs, ResultArgs};
pub(crate) use target::{
    DeviceArgs, Overrides, PipelineArgs, PlanArgs, RunArgs, SelectArgs, ShowArgs, StageArgs, TargetArgs, USUAL_FILE,
};

/// Declarative pipelines for small multimodal language models: a TOML file declares stages, each stage is cached
/// by the content of everything that determines its result, and only stages that are not cached run.
#[derive(Debug, Parser)]
#[command(
    name = "imp-flow",
    version,
    arg_required_else_help = true,
    after_help = "\
Examples:
  imp-flow run pipelines/tiny.toml       download, train, quantize and evaluate a tiny model
  imp-flow plan pipelines/tiny.toml      what would run and why
  imp-flow why lora                      why a stage of the last run ran, or would run
  imp-flow sweep pipelines/tiny.toml --set stages.lora.learning_rate=5e-4,1e-3
  imp-flow compare                       the points of the last sweep in one table
  imp-flow report                        a page about the last run
  imp-flow watch                         the same page while a run goes on
  imp-flow init my.toml                  a commented pipeline to start from
  imp-flow doctor                        what this machine has: GPUs, memory, disk

Exit codes: 0 done, 1 a stage failed, 2 error in the command line or the pipeline, 130 interrupted."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Cache folder [default: cache]
    #[arg(long, global = true, value_name = "FOLDER", env = "IMP_FLOW_CACHE")]
    pub(crate) cache: Option<PathBuf>,
    /// Folder for links to artifacts [default: artifacts]
    #[arg(long, global = true, value_name = "FOLDER", env = "IMP_FLOW_ARTIFACTS")]
    pub(crate) artifacts: Option<PathBuf>,
    /// Print JSON, one object per line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print less: of `run` and `sweep` only errors and warnings
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print more (-v, -vv); `RUST_LOG` selects by module
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Run the stages that are not cached
    #[command(after_help = "\
Examples:
  imp-flow run pipelines/tiny.toml
  imp-flow run pipelines/tiny.toml --set stages.finetune.learning_rate=5e-4
  imp-flow run pipelines/tiny.toml --until pretrain       only `pretrain` and the stages it needs
  imp-flow run pipelines/tiny.toml --force lora           run this stage even if it is cached
  imp-flow run pipelines/tiny.toml --device cuda          train and evaluate on a GPU
  imp-flow run pipelines/tiny.toml --detach               go on in the background when you log out
  imp-flow run --from-run 20261125-0042-3fa               repeat a past run
  imp-flow run --on-end 'notify-send \"$IMP_FLOW_PIPELINE: $IMP_FLOW_STATUS\"'

The command of --on-end gets IMP_FLOW_STATUS (done, failed or interrupted), IMP_FLOW_RUN, IMP_FLOW_PIPELINE, IMP_FLOW_FILE,
IMP_FLOW_SECONDS, IMP_FLOW_FAILED (the stages that failed) and IMP_FLOW_REPORT (the page). A second Ctrl-C leaves it out.

With `executor = \"slurm\"` in imp-flow.toml, stages are jobs of Slurm (docs/CLUSTER.md).
They go on when the terminal is closed, and the same command follows them.

Ctrl-C saves checkpoints and stops; run the same command again to resume.")]
    Run(RunArgs),
    /// Run a pipeline with several values for some of its keys
    #[command(after_help = "\
Examples:
  imp-flow sweep pipelines/sweeps/finetuning.toml
  imp-flow sweep pipelines/tiny.toml --set stages.lora.learning_rate=5e-4,1e-3,2e-3
  imp-flow sweep pipelines/tiny.toml --set seed=1,2,3 --keep-going

In the file:
  [sweep]                                     # all combinations
  \"vars.lora_rank\" = [64, 128, 256]
  [[sweep.zip]]                               # values that change together
  \"vars.llm\" = [\"phi\", \"qwen\"]
  \"vars.template\" = [\"phi2\", \"qwen2\"]
  [sweep.random]                              # drawn at random
  count = 20
  \"stages.finetune.learning_rate\" = { log_uniform = [1e-5, 1e-3] }

Stages that points share run once. `imp-flow compare` shows the results.")]
    Sweep(RunArgs),
    /// Show what would run and why
    #[command(after_help = "\
Examples:
  imp-flow plan pipelines/tiny.toml
  imp-flow plan pipelines/tiny.toml --set stages.lora.lora.rank=16
  imp-flow plan pipelines/tiny.toml --device cuda      is there a GPU for it?")]
    Plan(PlanArgs),
    /// Explain why a stage ran or would run
    #[command(after_help = "\
Examples:
  imp-flow why lora                                  in the pipeline that ran last
  imp-flow why lora --pipeline pipelines/tiny.toml
  imp-flow why finetune --point lora_rank=64         in one point of a sweep")]
    Why(StageArgs),
    /// Show the state of each stage
    #[command(after_help = "\
Examples:
  imp-flow status
  imp-flow status pipelines/tiny.toml")]
    Status {
        /// Pipeline file [default: the one that ran last, with its --set changes]
        #[arg(value_name = "PIPELINE", conflicts_with = "file")]
        pipeline: Option<PathBuf>,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Show what a stage produced, and from what
    #[command(after_help = "\
Examples:
  imp-flow show finetune
  imp-flow show pope --answers                    what the model answered
  imp-flow show pope --answers --wrong --category random")]
    Show(ShowArgs),
    /// Show a stage's log
    #[command(after_help = "\
Examples:
  imp-flow log finetune
  imp-flow log finetune -f       follow it while the stage runs")]
    Log {
        #[command(flatten)]
        stage: StageArgs,
        /// Keep printing while the stage runs
        #[arg(short, long)]
        follow: bool,
    },
    /// Draw the stages of a pipeline and their states
    #[command(after_help = "\
Examples:
  imp-flow graph pipelines/tiny.toml
  imp-flow graph pipelines/tiny.toml --format svg > tiny.svg
  imp-flow graph pipelines/tiny.toml --format dot | dot -Tpdf -o tiny.pdf")]
    Graph {
        #[command(flatten)]
        pipeline: PipelineArgs,
        /// Output format
        #[arg(long, value_enum, default_value_t = GraphFormat::Text)]
        format: GraphFormat,
    },
    /// List past runs
    #[command(after_help = "\
Examples:
  imp-flow runs
  imp-flow run --from-run ID     repeat one")]
    Runs,
    /// Compare points of a sweep, or runs: parameters that differ, and results
    #[command(after_help = "\
Examples:
  imp-flow compare                             the last sweep or run
  imp-flow compare 20261125-0042-3fa paper     two runs, by id or name
  imp-flow compare --sort pope.accuracy --where 'pope.accuracy>80'
  imp-flow compare --metrics 'pope.*' --metrics '*.loss'
  imp-flow compare --csv > results.csv

Without --metrics or --all, the main figures of each kind are shown. --csv and --json have all of them.")]
    Compare(CompareArgs),
    /// Say what differs between two runs: parameters, versions, machines, contents, results
    #[command(after_help = "\
Examples:
  imp-flow diff                              the last run, and the run of its pipeline before it
  imp-flow diff 20261125-0042-3fa paper      two runs, by id or name")]
    Diff(DiffArgs),
    /// Manage the cache
    #[command(subcommand)]
    Cache(CacheVerb),
    /// Write a page about a run: its graph, times, curves, scores and answers
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  imp-flow report                              the last run: artifacts/PIPELINE/report.html
  imp-flow report pipelines/tiny.toml          the last run of this pipeline
  imp-flow report 20261125-0042-3fa -o a.html  a past run, by id or name
  imp-flow report first second                 two runs in one page
  imp-flow report --json > run.json            the data of the page: docs/REPORT.md
  imp-flow report eval pipelines/v1_3b.toml    a table of scores beside the published ones
  imp-flow report study                        the sweeps of the report beside its own tables

`run` and `sweep` write the page at their end. It is one file that needs no network."
    )]
    Report {
        #[command(subcommand)]
        what: Option<ReportVerb>,
        #[command(flatten)]
        page: PageArgs,
    },
    /// Watch a run in the browser while it goes on
    #[command(after_help = "\
Examples:
  imp-flow watch                          the last run, and every run after it
  imp-flow watch pipelines/tiny.toml      runs of this pipeline; waits for the first one
  imp-flow watch 20261125-0042-3fa        this run only
  imp-flow watch --port 8123              for a server: ssh -L 8123:localhost:8123 SERVER

Says an address on this machine with a random token in it: whoever has it can read the page, and change nothing. The page is
that of `imp-flow report`, and follows the run without being loaded again. It stays when the run ends; Ctrl-C ends it.")]
    Watch(WatchArgs),
    /// Write a commented pipeline to start from
    #[command(after_help = "\
Examples:
  imp-flow init                              write pipeline.toml, which `imp-flow run` takes
  imp-flow init --template own-data my_imp   write my_imp/pipeline.toml
  imp-flow init pipelines/my.toml

Templates:
  tiny       a tiny model on drawn shapes: nothing is downloaded, and it takes minutes
  finetune   a released Imp, finetuned on your own images and conversations
  imp-v1     Imp-v1-3B from its language model and encoder, and the nine benchmarks
  own-data   a small language model and a SigLIP encoder become an Imp on your own data")]
    Init {
        /// Folder, or file that ends with .toml; an existing file is not changed
        #[arg(value_name = "FOLDER|FILE", default_value = USUAL_FILE)]
        place: PathBuf,
        /// What to start from
        #[arg(long, value_enum, default_value_t = Template::Tiny)]
        template: Template,
    },
    /// Make a pipeline from another program's training script
    #[command(subcommand)]
    Import(ImportVerb),
    /// List the kinds of stages, or the inputs and keys of one
    #[command(after_help = "\
Examples:
  imp-flow kinds
  imp-flow kinds finetune       its keys, their defaults and what they mean")]
    Kinds {
        /// Kind of stage
        kind: Option<String>,
    },
    /// Print the JSON Schema of pipeline files, with which editors complete and check keys
    #[command(after_help = "\
Examples:
  imp-flow schema > imp-flow.schema.json

Then begin a pipeline file with this line, which taplo and the TOML extensions of editors read:
  #:schema ./imp-flow.schema.json")]
    Schema,
    /// Print the completions of a shell
    #[command(after_help = "\
Examples:
  imp-flow completions bash > ~/.local/share/bash-completion/completions/imp-flow
  imp-flow completions zsh > ~/.zfunc/_imp-flow
  imp-flow completions fish > ~/.config/fish/completions/imp-flow.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages
    #[command(after_help = "\
Examples:
  imp-flow man --to ~/.local/share/man/man1      then: man imp-flow, man imp-flow-run")]
    Man {
        /// Folder to write them into; pages of the same names are replaced
        #[arg(long, value_name = "FOLDER")]
        to: PathBuf,
    },
    /// Ask a model one question, about an image or without one
    #[command(after_help = "\
Examples:
  imp-flow ask artifacts/tiny/merge \"Is there a circle?\" --image photo.png
  imp-flow ask artifacts/imp-v1-3b/quantize \"Describe it.\" --image photo.jpg --json
  imp-flow ask artifacts/imp-v1-3b/quantize \"Write a haiku.\" --temperature 0.7 --top-p 0.9

MODEL is a folder, `model.gguf` in one, or a stage of the last run: the artifact of finetune, merge or quantize, or any folder
like it. It is asked in the template of its training, and computes on the CPU.")]
    Ask(AskArgs),
    /// Talk with a model
    #[command(after_help = "\
Examples:
  imp-flow chat artifacts/tiny/merge --image photo.png
  imp-flow chat merge                               a stage of the pipeline that ran last
  imp-flow chat imp/quantize --system \"Answer in one word.\" --temperature 0.7
  printf 'What is it?\\nWhy?\\n' | imp-flow chat merge --image photo.png --quiet

Each line is a question. /image FILE shows an image with the next one, /reset begins anew, /help lists what else there is.
Ctrl-C stops an answer, Ctrl-D leaves. MODEL is as in `ask`; the CPU computes.")]
    Chat(ChatArgs),
    /// Serve a model over HTTP, as OpenAI's API does
    #[command(after_help = "\
Examples:
  imp-flow serve merge
  curl localhost:8080/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"messages\": [{\"role\": \"user\", \"content\": \"What is an imp?\"}]}'
  imp-flow serve merge --host 0.0.0.0 --api-key-file key.txt

Serves /v1/chat/completions (images as data: addresses, streaming), /v1/models and /health: docs/deploy.md. Requests are answered
one after the other, on the CPU. --max-tokens, --temperature and --top-p hold where a request does not say them. Ctrl-C lets the
running answer end, a second one quits at once. MODEL is as in `ask`.")]
    Serve(ServeArgs),
    /// Copy the result of a stage out of the cache, as files of its own
    #[command(after_help = "\
Examples:
  imp-flow export merge --to my-model
  imp-flow export quantize -p pipelines/v1_3b.toml --to /media/phone/imp
  imp-flow export merge --point lora_rank=64 --to rank-64

All files or none: the copies are checked before the folder gets its name.")]
    Export(ExportArgs),
    /// Pull the result of a stage from the remote cache, without running anything
    #[command(after_help = "\
Examples:
  imp-flow pull merge -p pipelines/tiny.toml
  imp-flow pull quantize                          a stage of the pipeline that ran last
  imp-flow pull finetune --point lora_rank=64     in one point of a sweep

It is the result of the present configuration. What it was made from is not pulled. `remote` in imp-flow.toml names the remote
cache: docs/REMOTE.md.")]
    Pull(StageArgs),
    /// Push the result of a stage to a Hugging Face hub, with a card that says how it was made
    #[command(after_help = "\
Examples:
  imp-flow push merge hf://me/my-imp                  show what would be pushed
  imp-flow push merge hf://me/my-imp --yes            push it
  imp-flow push quantize hf://me/my-imp-4bit --yes --private

One commit has all files, and only what differs is uploaded. The token is HF_TOKEN, or that of `hf auth login`. The README.md that
is written can be changed at the hub: remove its first comment, and no push will replace it.")]
    Push(PushArgs),
    /// Check this machine: GPUs and their libraries, CPU, memory, and the disk of the cache
    #[command(after_help = "\
Examples:
  imp-flow doctor
  imp-flow doctor --json
  imp-flow doctor --cache /scratch/cache       would this disk do?

It changes nothing. What is missing is named with the package that has it; the exit code is 0 all the same.")]
    Doctor(DeviceArgs),
    /// Run one stage (for internal use)
    #[command(name = "__stage", hide = true)]
    Stage {
        /// Job file
        job: PathBuf,
        /// The attempt that this is, as a job of a cluster
        #[arg(long)]
        attempt: Option<String>,
        /// The folder of a node in which the output is written until it is complete
        #[arg(long)]
        output: Option<std::ffi::OsString>,
    },
}

/// What `init` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Template {
    Tiny,
    Finetune,
    ImpV1,
    OwnData,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    Text,
    Dot,
    Mermaid,
    Svg,
}
