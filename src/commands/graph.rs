//! `imp-flow graph`.

use std::process::ExitCode;

use super::session::{Request, Session};
use crate::{
    cli::{Common, GraphFormat, PipelineArgs},
    failure::Failure,
    report,
};

/// Draws the stages of a pipeline and their states.
pub(crate) fn graph(args: &PipelineArgs, format: GraphFormat, common: &Common) -> Result<ExitCode, Failure> {
    let request =
        Request { file: args.file.clone(), overrides: args.set.overrides.clone(), sweep: false, device: None };
    let session = Session::open(request, common)?;
    let selection = session.select(&args.select.names())?;
    let verdicts = session.planner().plan(&selection)?;
    report::graph(
        &session.pipeline,
        &session.graph,
        &verdicts,
        match format {
            _ if common.json => report::GraphFormat::Json,
            GraphFormat::Text => report::GraphFormat::Text,
            GraphFormat::Dot => report::GraphFormat::Dot,
            GraphFormat::Mermaid => report::GraphFormat::Mermaid,
            GraphFormat::Svg => report::GraphFormat::Svg,
        },
    );
    Ok(ExitCode::SUCCESS)
}
