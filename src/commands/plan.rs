//! `imp-flow plan`.

use std::{collections::HashSet, fs, process::ExitCode};

use imp_stages::{
    contract::forecast::{self, Forecast},
    place::Cpu,
};

use super::session::Session;
use crate::{
    cli::{Common, PlanArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::{Selection, Verdict},
    store::{Digest, Store},
};

/// Shows what would run and why.
pub(crate) fn plan(args: &PlanArgs, common: &Common) -> Result<ExitCode, Failure> {
    let session = Session::of_file(&args.pipeline, args.place.device, common)?;
    let selection = session.select(&args.pipeline.select.names())?;
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
    let rate = rate_for(&forecasts, &session.store);
    report::plan(&session.pipeline, &session.store, machine, &verdicts, &forecasts, rate, common.style());
    Ok(ExitCode::SUCCESS)
}

/// The speed of this machine. Measured only if the forecast time of a stage depends on it.
fn rate_for(forecasts: &[Forecast], store: &Store) -> Option<f64> {
    let is_needed = forecasts.iter().any(|forecast| forecast.work.is_some());
    is_needed.then(|| best_rate(store, &Cpu::detect(), forecast::rate()))
}

/// No load makes a machine so many times slower.
const IMPLAUSIBLE: f64 = 100.0;

/// The higher of the `measured` rate and the highest that was noted for this processor. What else runs only lowers a rate, so a
/// time computed with the highest stays a lower bound on a busy machine.
fn best_rate(store: &Store, cpu: &Cpu, measured: f64) -> f64 {
    // Without a name it may be that of another machine with the same cache.
    let Some(model) = &cpu.model else { return measured };
    let question = format!("rate {model} {} {}", cpu.threads, env!("CARGO_PKG_VERSION"));
    let note = store.note(Digest::of(question.as_bytes()));
    let noted: Option<f64> = fs::read_to_string(&note).ok().and_then(|text| text.parse().ok());
    // A note is a file that anybody may have changed.
    let credible = measured..=IMPLAUSIBLE * measured;
    if let Some(noted) = noted.filter(|noted| credible.contains(noted)) {
        return noted;
    }
    // Without the note, the next plan only measures again.
    let _ = store.write_derived(&note, measured.to_string().as_bytes());
    measured
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_busy_machine_keeps_the_rate_of_its_idle_hours() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let named = |name: &str| Cpu { model: Some(name.into()), ..Cpu::detect() };
        let (cpu, other) = (named("one"), named("another"));
        let rates: Vec<f64> =
            [100.0, 40.0, 120.0, 90.0].into_iter().map(|measured| best_rate(&store, &cpu, measured)).collect();
        assert_eq!(rates, [100.0, 100.0, 120.0, 120.0]);
        assert_eq!(best_rate(&store, &other, 30.0).to_string(), "30");
        let nameless = Cpu { model: None, ..Cpu::detect() };
        assert_eq!([9.0, 5.0].map(|measured| best_rate(&store, &nameless, measured).to_string()), ["9", "5"]);
        for damage in ["NaN", "inf", "1e300", "-1", "fast", ""] {
            for note in fs::read_dir(folder.path().join("cache/notes")).unwrap() {
                fs::write(note.unwrap().path(), damage).unwrap();
            }
            assert_eq!(best_rate(&store, &cpu, 90.0).to_string(), "90", "{damage:?} is written again");
        }
    }
}
