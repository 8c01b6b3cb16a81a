//! `imp-flow show`.

use std::process::ExitCode;

use super::session::{Session, never_ran};
use crate::{
    cli::{Common, StageArgs},
    failure::Failure,
    report,
    scheduler::Verdict,
};

/// Shows the receipt of a stage.
pub(crate) fn show(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    let stage = &session.pipeline.stages[index];
    let verdict = session.verdict(index)?;
    let Some(receipt) = session.receipt(index, &verdict)? else { return Err(never_ran(&stage.name)) };
    if !matches!(verdict, Verdict::Hit { .. }) {
        let text = format!("note: {} has not run with its present configuration; showing its last result", stage.name);
        report::note(&text, common.style());
    }
    let named = |from: &usize| session.pipeline.stages[*from].name.as_str();
    let inputs = stage.inputs.iter().map(|(input, from)| (input.as_str(), named(from))).collect();
    let files = session.store.tree(receipt.output.digest)?;
    report::receipt(&stage.name, &receipt, &inputs, &files, common.json);
    Ok(ExitCode::SUCCESS)
}
