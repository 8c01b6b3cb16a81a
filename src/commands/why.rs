//! `imp-flow why`.

use std::process::ExitCode;

use super::session::Session;
use crate::{
    cli::{Common, StageArgs},
    failure::Failure,
    report,
};

/// Explains why a stage ran or would run.
pub(crate) fn why(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    report::why(&session.planner().why(index)?, common.json);
    Ok(ExitCode::SUCCESS)
}
