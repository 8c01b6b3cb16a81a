//! `imp-flow graph`.

use std::process::ExitCode;

use super::{
    Failure,
    place::{Asked, Workplace},
};
use crate::{
    cli::{Common, GraphFormat, PlanArgs},
    report,
};

/// Draws the stages of a pipeline and where they stand.
pub(crate) fn graph(args: &PlanArgs, format: GraphFormat, common: &Common) -> Result<ExitCode, Failure> {
    let asked = Asked { file: args.file.clone(), overrides: args.set.overrides.clone(), sweep: false };
    let place = Workplace::open(asked, common)?;
    let selection = place.select(&args.select.names())?;
    let verdicts = place.planner().plan(&selection)?;
    report::graph(&place.pipeline, &place.graph, &verdicts, format);
    Ok(ExitCode::SUCCESS)
}
