//! `imp-flow diff`: what differs between two runs.

use std::{collections::BTreeMap, process::ExitCode};

use super::session::{existing_store, find_run, usage};
use crate::{
    cli::{Common, DiffArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report::{self, Differences},
    store::{Origin, RunRecord, RunStage, Store},
    view::{ChangesView, ParameterChange, run_of_today, stages},
};

/// Shows what differs between two runs, or between a run and the one before it.
pub(crate) fn diff(args: &DiffArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    let (old, new) = match args.runs.as_slice() {
        [old, new] => (find_run(&store, Some(old))?, find_run(&store, Some(new))?),
        named => {
            let new = find_run(&store, named.first().map(String::as_str))?;
            let old = store.run_before(&new)?.ok_or_else(|| {
                let problem = Diagnostic::new(format!("there is no run of {} before {}", new.pipeline, new.id), None);
                usage(problem.help("name two runs; `imp-flow runs` lists them"))
            })?;
            (old, new)
        }
    };
    let [old, new] = [old, new].map(|run| run_of_today(run, &store));
    let changes = ChangesView::new(&new, &old);
    let (started, kinds) =
        (pairs(&facts(&old), &facts(&new)), pairs(&versions(&store, &old)?, &versions(&store, &new)?));
    report::diff(&Differences { old: &old, new: &new, started, kinds, changes }, common.json);
    Ok(ExitCode::SUCCESS)
}

/// What a run was started with.
fn facts(run: &RunRecord) -> BTreeMap<String, String> {
    let origin = run.origin.iter().flat_map(Origin::facts);
    let others = [
        ("pipeline", run.pipeline.clone()),
        ("file", run.file.display().to_string()),
        ("imp-flow", run.made_by.clone()),
        ("host", run.host.clone()),
        ("sweep", if run.sweep { "yes" } else { "no" }.into()),
    ];
    others.into_iter().chain(origin).map(|(name, value)| (name.into(), value)).collect()
}

/// The versions of the kinds that made the results of a run, and where they computed.
fn versions(store: &Store, run: &RunRecord) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    for (name, RunStage { key, .. }) in stages(run) {
        let Some(receipt) = key.map(|key| store.receipt(key)).transpose()?.flatten() else { continue };
        let manifest = &receipt.manifest;
        found.insert(format!("{name}: version of {}", manifest.kind), manifest.version.to_string());
        if let Some(environment) = &receipt.environment {
            found.insert(format!("{name}: computed on"), environment.to_string());
        }
    }
    Ok(found)
}

/// Values that differ. What only one of the runs has is no difference of both: stages are listed elsewhere.
fn pairs(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<ParameterChange> {
    let differs = |(key, new): (&String, &String)| {
        let old = old.get(key).filter(|old| *old != new)?;
        Some(ParameterChange { key: key.clone(), old: Some(old.clone()), new: Some(new.clone()) })
    };
    new.iter().filter_map(differs).collect()
}
