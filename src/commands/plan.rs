//! `imp-flow plan`.

use std::{collections::HashSet, process::ExitCode};

use super::session::{Request, Session};
use crate::{
    cli::{Common, PlanArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::{Selection, Verdict},
};

/// Shows what would run and why.
pub(crate) fn plan(args: &PlanArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (pipeline, device) = (&args.pipeline, args.place.device);
    let request =
        Request { file: pipeline.file.clone(), overrides: pipeline.set.overrides.clone(), sweep: false, device };
    let session = Session::open(request, common)?;
    let selection = session.select(&pipeline.select.names())?;
    let problems = problems(&session, &selection)?;
    if !problems.is_empty() {
        return Err(session.refuse(problems));
    }
    show(&session, &selection, common)
}

/// Prints the plan for the selected stages.
pub(super) fn show(session: &Session, selection: &Selection, common: &Common) -> Result<ExitCode, Failure> {
    let planner = session.planner_with_remote();
    let verdicts: Vec<_> =
        planner.plan(selection)?.into_iter().filter(|(index, _)| selection.includes(*index)).collect();
    let machine = session.machine();
    let forecasts = planner.forecast(&verdicts, machine)?;
    report::plan(&session.pipeline, &session.store, machine, &verdicts, &forecasts, common.style());
    Ok(ExitCode::SUCCESS)
}

/// Why selected stages can't run: they need a stage that is neither selected nor cached, or more than the machine has.
pub(super) fn problems(session: &Session, selection: &Selection) -> Result<Vec<Diagnostic>, Failure> {
    let refused = session.machine().refuses(&session.pipeline);
    if selection.is_everything() && refused.is_empty() {
        return Ok(Vec::new());
    }
    let found = problems_of(session, selection, &refused, &session.planner().plan(selection)?);
    if found.is_empty() || session.remote.is_none() {
        return Ok(found);
    }
    // What this machine can't make may be in the remote cache.
    Ok(problems_of(session, selection, &refused, &session.planner_with_remote().plan(selection)?))
}

fn problems_of(
    session: &Session,
    selection: &Selection,
    refused: &[(usize, Diagnostic)],
    verdicts: &[(usize, Verdict)],
) -> Vec<Diagnostic> {
    let is_open = |verdict: &Verdict| !matches!(verdict, Verdict::Hit { .. } | Verdict::Remote { .. });
    let open: HashSet<usize> =
        verdicts.iter().filter(|(_, verdict)| is_open(verdict)).map(|(index, _)| *index).collect();
    let may_run = |index: &usize| selection.includes(*index) && open.contains(index);
    let mut problems: Vec<Diagnostic> =
        refused.iter().filter(|(index, _)| may_run(index)).map(|(_, problem)| problem.clone()).collect();
    // What this machine lacks for all stages is said once.
    problems.dedup_by(|next, first| next.message == first.message);
    let stages = &session.pipeline.stages;
    for stage in verdicts.iter().map(|(index, _)| index).filter(|index| may_run(index)).map(|index| &stages[*index]) {
        let missing = stage.inputs.values().find(|from| !selection.includes(**from) && open.contains(from));
        if let Some(needed) = missing.map(|from| &stages[*from].name) {
            let message = format!("stage `{}` needs `{needed}`, which is neither selected nor cached", stage.name);
            let help = format!("run `{needed}` first: `--until {needed}`");
            problems.push(Diagnostic::new(message, Some(stage.span.clone())).help(help));
        }
    }
    problems
}
