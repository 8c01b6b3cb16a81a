//! `imp-flow export`.

use std::process::ExitCode;

use super::session::Session;
use crate::{
    cli::{Common, ExportArgs},
    failure::Failure,
    report,
};

/// Copies the result of a stage out of the cache.
pub(crate) fn export(args: &ExportArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index, receipt) = Session::of_result(&args.result, common)?;
    let output = receipt.output;
    let bar = report::Bar::bytes("copying", common.style());
    let exported = session.store.export(output.digest, &args.to, |done| bar.at(done, output.bytes));
    bar.clear();
    exported?;
    report::exported(&session.pipeline.stages[index].name, &receipt, &args.to, common.style());
    Ok(ExitCode::SUCCESS)
}
