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
    let forecasts = planner.forecast(&verdicts)?;
    report::plan(&place.pipeline, &place.store, &verdicts, &forecasts, common);
    Ok(ExitCode::SUCCESS)
}
