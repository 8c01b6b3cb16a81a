//! `imp-flow plan`.

use std::process::ExitCode;

use super::{
    Failure,
    place::{Asked, Workplace},
};
use crate::{
    cli::{Common, PlanArgs},
    report,
    scheduler::Selection,
};

/// Says what would run, and why.
pub(crate) fn plan(args: &PlanArgs, common: &Common) -> Result<ExitCode, Failure> {
    let asked = Asked { file: args.file.clone(), overrides: args.set.overrides.clone(), sweep: false };
    let place = Workplace::open(asked, common)?;
    let selection = place.select(&args.select.names())?;
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
