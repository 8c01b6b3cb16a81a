//! `imp-flow plan`.

use std::process::ExitCode;

use super::{Failure, open};
use crate::{
    cli::{Common, PipelineArgs},
    report,
    scheduler::Planner,
};

/// Says what would run, and why.
pub(crate) fn plan(args: &PipelineArgs, common: &Common) -> Result<ExitCode, Failure> {
    let place = open(args, common)?;
    let planner = Planner { pipeline: &place.pipeline, graph: &place.graph, store: &place.store, index: &place.index };
    let verdicts = planner.plan()?;
    let memory = planner.memory(&verdicts)?;
    report::plan(&place.pipeline, &place.store, &verdicts, &memory, common);
    Ok(ExitCode::SUCCESS)
}
