//! `imp-flow show`.

use std::process::ExitCode;

use super::session::{Session, never_ran, usage};
use crate::{
    cli::{Common, StageArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::Verdict,
    store::Digest,
};

/// Shows the receipt of a stage.
pub(crate) fn show(args: &StageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(args, common)?;
    let stage = &session.pipeline.stages[index];
    let verdict = session.verdict(index)?;
    let Some(receipt) = session.receipt(index, &verdict)? else {
        return Err(match verdict {
            Verdict::Run { key, .. } if session.store.is_being_made(key) => still_runs(&session, &stage.name, key),
            _ => never_ran(&stage.name),
        });
    };
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

/// The error for a stage that runs for the first time.
fn still_runs(session: &Session, stage: &str, key: Digest) -> Failure {
    let progress = session.store.work(key).progress().map(|progress| format!(" ({})", report::progress(&progress)));
    let message = format!("stage `{stage}` is running{}: it has no result until it ends", progress.unwrap_or_default());
    usage(Diagnostic::new(message, None).help(format!("follow it with `imp-flow log -f {stage}`")))
}
