//! One verb a file. The only layer that puts pipeline, store, scheduler and report together.

mod init;
mod kinds;
mod plan;
mod report;
mod run;

use std::process::ExitCode;

pub(crate) use init::init;
pub(crate) use kinds::kinds;
pub(crate) use plan::plan;
pub(crate) use report::report_eval;
pub(crate) use run::run;

use crate::{
    artifacts::Artifacts,
    cli::{Common, PipelineArgs},
    graph::Graph,
    pipeline::{self, Diagnostics, Pipeline, Sources},
    settings::Settings,
    store::{Index, Store, StoreError},
};

/// Why a verb ended early. What a stage did wrong was reported by the run itself.
pub(crate) enum Failure {
    /// The user's files or command line are wrong.
    Usage { problems: Diagnostics, sources: Sources },
    /// The machine's settings are wrong.
    Settings(String),
    /// The store can't be used.
    Store(StoreError),
    /// The operating system refused.
    Io { what: String, source: std::io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Failure {
    /// 2 where the person has to change something, 1 where the machine has failed.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Settings(_) => ExitCode::from(2),
            Self::Store(_) | Self::Io { .. } => ExitCode::from(1),
        }
    }
}

/// Everything that a verb on a pipeline needs.
struct Workplace {
    settings: Settings,
    pipeline: Pipeline,
    graph: Graph,
    store: Store,
    index: Index,
    artifacts: Artifacts,
}

fn open(args: &PipelineArgs, common: &Common) -> Result<Workplace, Failure> {
    let settings = Settings::load(common.cache.clone(), common.artifacts.clone()).map_err(Failure::Settings)?;
    let mut sources = Sources::default();
    let checked = pipeline::load(&args.file, &args.overrides, &mut sources)
        .and_then(|pipeline| Graph::new(&pipeline).map(|graph| (pipeline, graph)).map_err(|circle| vec![circle]));
    let (pipeline, graph) = match checked {
        Ok(checked) => checked,
        Err(problems) => return Err(Failure::Usage { problems, sources }),
    };
    let store = Store::open(&settings.cache)?;
    let index = Index::open(&store);
    let artifacts = Artifacts::new(&settings.artifacts, &pipeline.name);
    Ok(Workplace { settings, pipeline, graph, store, index, artifacts })
}
