//! `imp-flow run`.

use std::process::ExitCode;

use super::{
    Failure, open,
    report::{benchmark, eval_rows},
};
use crate::{
    cli::{Common, PipelineArgs},
    report,
    scheduler::{self, Ending, Options, Planner},
};

/// Runs a pipeline.
pub(crate) fn run(args: &PipelineArgs, common: &Common) -> Result<ExitCode, Failure> {
    let place = open(args, common)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Failure::Io { what: "can't start the scheduler".into(), source })?;
    let planner = Planner { pipeline: &place.pipeline, graph: &place.graph, store: &place.store, index: &place.index };
    let mut reporter = report::for_run(common);
    let options = Options { cpus: place.settings.cpus, environment: place.settings.environment };
    let summary =
        runtime.block_on(scheduler::run(planner, &place.artifacts, options, &mut |event| reporter.on(event)))?;
    if let Err(error) = place.artifacts.record(&summary) {
        tracing::warn!("no record of this run under {}: {error}", place.artifacts.folder().display());
    }
    let shown = summary.ending == Ending::Done && !common.quiet && !common.json;
    if shown && report::is_whole(place.pipeline.stages.iter().filter_map(benchmark)) {
        let results = |name: &str| summary.stages.iter().find(|stage| stage.name == name).map(|stage| &stage.results);
        report::eval(&eval_rows(&place.pipeline, results), report::Format::Text);
    }
    Ok(match summary.ending {
        Ending::Done => ExitCode::SUCCESS,
        Ending::Failed => ExitCode::from(1),
        Ending::Interrupted => ExitCode::from(130),
    })
}
