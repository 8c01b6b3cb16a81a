//! `imp-flow show`.

use std::process::ExitCode;

use super::session::{Session, never_ran, usage};
use crate::{
    cli::{Common, ShowArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::Verdict,
    store::{Digest, Receipt},
    view::all_rows,
};

/// Shows the receipt of a stage.
pub(crate) fn show(args: &ShowArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (session, index) = Session::of_stage(&args.stage, common)?;
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
    if args.answers {
        return answers(args, &session, index, &receipt, common);
    }
    let named = |from: &usize| session.pipeline.stages[*from].name.as_str();
    let inputs = stage.inputs.iter().map(|(input, from)| (input.as_str(), named(from))).collect();
    let files = session.store.tree(receipt.output.digest)?;
    let links = session.artifacts.links_of(&session.pipeline, stage, &receipt, &session.store);
    report::receipt(&stage.name, &receipt, &inputs, &files, &links, common.json);
    Ok(ExitCode::SUCCESS)
}

/// The error for a stage that runs for the first time.
fn still_runs(session: &Session, stage: &str, key: Digest) -> Failure {
    let progress = session.store.work(key).progress().map(|progress| format!(" ({})", report::progress(&progress)));
    let message = format!("stage `{stage}` is running{}: it has no result until it ends", progress.unwrap_or_default());
    usage(Diagnostic::new(message, None).help(format!("follow it with `imp-flow log -f {stage}`")))
}

/// Shows the answers in a result.
fn answers(
    args: &ShowArgs,
    session: &Session,
    index: usize,
    receipt: &Receipt,
    common: &Common,
) -> Result<ExitCode, Failure> {
    let stage = &session.pipeline.stages[index];
    let read = all_rows(&session.store, receipt);
    let read =
        read.map_err(|source| Failure::Io { what: format!("can't read the answers of {}", stage.name), source })?;
    let Some(mut rows) = read else {
        let problem = Diagnostic::new(format!("stage `{}` has no answers", stage.name), None);
        return Err(usage(problem.help("stages of the kind `eval` have them")));
    };
    if let Some(category) = &args.category
        && !rows.iter().any(|row| row.category == *category)
    {
        let mut known: Vec<&str> =
            rows.iter().map(|row| row.category.as_str()).filter(|name| !name.is_empty()).collect();
        known.sort_unstable();
        known.dedup();
        let problem = Diagnostic::new(format!("no question is of the category `{category}`"), None);
        return Err(usage(problem.suggest(category, known)));
    }
    // An image in an input of the stage, as a path that the user can open.
    for row in &mut rows {
        let found = row.image_file.as_deref().and_then(|image| {
            let (input, path) = image.split_once('/')?;
            let from = &session.pipeline.stages[*stage.inputs.get(input)?];
            Some(session.artifacts.of(&session.pipeline, from).join(path).display().to_string())
        });
        row.image_file = found.or(row.image_file.take());
    }
    let filter = report::AnswerFilter { only_wrong: args.wrong, category: args.category.as_deref() };
    report::answers(&rows, filter, common.json);
    Ok(ExitCode::SUCCESS)
}
