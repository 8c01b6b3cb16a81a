//! `imp-flow graph`.

use std::process::ExitCode;

use super::{
    Failure,
    session::{Asked, Session},
};
use crate::{
    cli::{Common, GraphFormat, PlanArgs},
    report,
};

/// Draws the stages of a pipeline and where they stand.
pub(crate) fn graph(args: &PlanArgs, format: GraphFormat, common: &Common) -> Result<ExitCode, Failure> {
    let asked = Asked { file: args.file.clone(), overrides: args.set.overrides.clone(), sweep: false };
    let session = Session::open(asked, common)?;
    let selection = session.select(&args.select.names())?;
    let verdicts = session.planner().plan(&selection)?;
    report::graph(&session.pipeline, &session.graph, &verdicts, format);
    Ok(ExitCode::SUCCESS)
}
