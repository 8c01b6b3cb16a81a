//! `imp-flow graph`.

use std::process::ExitCode;

use super::session::Session;
use crate::{
    cli::{Common, GraphFormat, PipelineArgs},
    failure::Failure,
    report,
};

/// Draws the stages of a pipeline and their states.
pub(crate) fn graph(args: &PipelineArgs, format: GraphFormat, common: &Common) -> Result<ExitCode, Failure> {
    let session = Session::of_file(args, None, common)?;
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
