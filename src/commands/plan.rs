//! `imp-flow plan`.

use std::{collections::HashSet, process::ExitCode};

use super::{
    Failure,
    place::{Asked, Workplace},
};
use crate::{
    cli::{Common, PlanArgs},
    pipeline::Diagnostic,
    report,
    scheduler::{Selection, Verdict},
};

/// Says what would run, and why.
pub(crate) fn plan(args: &PlanArgs, common: &Common) -> Result<ExitCode, Failure> {
    let asked = Asked { file: args.file.clone(), overrides: args.set.overrides.clone(), sweep: false };
    let place = Workplace::open(asked, common)?;
    let selection = place.select(&args.select.names())?;
    let problems = problems(&place, &selection)?;
    if !problems.is_empty() {
        return Err(place.refuse(problems));
    }
    show(&place, &selection, common)
}

pub(super) fn show(place: &Workplace, selection: &Selection, common: &Common) -> Result<ExitCode, Failure> {
    let planner = place.planner();
    let verdicts: Vec<_> = planner.plan(selection)?.into_iter().filter(|(index, _)| selection.wants(*index)).collect();
    let forecasts = planner.forecast(&verdicts)?;
    let machine = &place.settings.machine;
    report::plan(&place.pipeline, &place.store, machine, &verdicts, &forecasts, common);
    Ok(ExitCode::SUCCESS)
}

/// Why what is wanted can't run: it needs what is left out and not in the cache, or more than the machine has.
pub(super) fn problems(place: &Workplace, selection: &Selection) -> Result<Vec<Diagnostic>, Failure> {
    let refused = place.settings.machine.refuses(&place.pipeline);
    if selection.is_everything() && refused.is_empty() {
        return Ok(Vec::new());
    }
    let verdicts = place.planner().plan(selection)?;
    let is_open = |verdict: &Verdict| !matches!(verdict, Verdict::Hit { .. });
    let open: HashSet<usize> =
        verdicts.iter().filter(|(_, verdict)| is_open(verdict)).map(|(index, _)| *index).collect();
    let wanted = |index: &usize| selection.wants(*index) && open.contains(index);
    let mut problems: Vec<Diagnostic> =
        refused.into_iter().filter(|(index, _)| wanted(index)).map(|(_, problem)| problem).collect();
    let stages = &place.pipeline.stages;
    for stage in verdicts.iter().map(|(index, _)| index).filter(|index| wanted(index)).map(|index| &stages[*index]) {
        let missing = stage.inputs.values().find(|from| !selection.wants(**from) && open.contains(from));
        if let Some(needed) = missing.map(|from| &stages[*from].name) {
            let message = format!("stage `{}` needs `{needed}`, which is left out and not in the cache", stage.name);
            let help = format!("run `{needed}` first: `--until {needed}`");
            problems.push(Diagnostic::new(message, Some(stage.span.clone())).help(help));
        }
    }
    Ok(problems)
}
