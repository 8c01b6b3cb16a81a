//! `imp-flow runs`.

use std::process::ExitCode;

use super::session::existing_store;
use crate::{cli::Common, failure::Failure, report};

/// Lists past runs.
pub(crate) fn runs(common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    report::runs(&store.runs()?, common.json);
    Ok(ExitCode::SUCCESS)
}
