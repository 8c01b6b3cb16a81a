//! `imp-flow plan`.

use std::process::ExitCode;

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
    let missing = missing(&place, &selection)?;
    if !missing.is_empty() {
        return Err(place.refuse(missing));
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

/// What wanted stages need, is left out, and is not in the cache.
pub(super) fn missing(place: &Workplace, selection: &Selection) -> Result<Vec<Diagnostic>, Failure> {
    if selection.is_everything() {
        return Ok(Vec::new());
    }
    let verdicts = place.planner().plan(selection)?;
    let open =
        |index: &usize| verdicts.iter().any(|(at, verdict)| at == index && !matches!(verdict, Verdict::Hit { .. }));
    let stages = &place.pipeline.stages;
    let wanted = verdicts.iter().map(|(index, _)| *index).filter(|index| selection.wants(*index) && open(index));
    Ok(wanted
        .filter_map(|index| {
            let needed = *stages[index].inputs.values().find(|from| !selection.wants(**from) && open(from))?;
            let (stage, needed) = (&stages[index], &stages[needed].name);
            let message = format!("stage `{}` needs `{needed}`, which is left out and not in the cache", stage.name);
            let help = format!("run `{needed}` first: `--until {needed}`");
            Some(Diagnostic::new(message, Some(stage.span.clone())).help(help))
        })
        .collect())
}
