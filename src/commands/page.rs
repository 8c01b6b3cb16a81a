//! `imp-flow report`: the page of a run. `run` and `sweep` write it at their end, too.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use imp_stages::kinds;

use super::{
    report::model_rows,
    session::{Session, existing_store, find_run, settings},
};
use crate::{
    artifacts::{self, Artifacts},
    cli::{Common, PageArgs},
    failure::Failure,
    report,
    scheduler::{Selection, Verdict},
    store::{Digest, RunRecord, Store, StoreError},
    view::{self, Page, RunSource, is_open, run_of_today},
};

/// Writes the page of runs, or prints its data.
pub(crate) fn page(args: &PageArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    let runs = match args.runs.as_slice() {
        [] => vec![find_run(&store, None)?],
        named => named.iter().map(|name| run_of(&store, name)).collect::<Result<_, _>>()?,
    };
    let opened = runs.iter().map(|run| Session::of_run(run.clone(), None, common)).collect::<Result<Vec<_>, _>>()?;
    let sessions: Vec<(&Session, &RunRecord)> = opened.iter().zip(&runs).collect();
    let page = page_of(&sessions)?;
    if common.json {
        report::print(&report::page_json(&page).map_err(no_page)?);
        return Ok(ExitCode::SUCCESS);
    }
    let html = report::page_html(&title(&runs), &page).map_err(no_page)?;
    if args.output.as_deref() == Some(Path::new("-")) {
        report::print_raw(&html);
        return Ok(ExitCode::SUCCESS);
    }
    let path = match &args.output {
        Some(path) => path.clone(),
        None => usual_path(&store, &runs, common)?,
    };
    write(&path, &html, &store)?;
    report::page_written(&path, common.style());
    Ok(ExitCode::SUCCESS)
}

/// The title of the page of a run as it is now, and its data as JSON.
pub(super) fn data_of(run: &RunRecord, common: &Common) -> Result<(String, String), Failure> {
    let session = Session::of_run(run.clone(), None, common)?;
    let page = page_of(&[(&session, run)])?;
    Ok((run.pipeline.clone(), report::page_json(&page).map_err(no_page)?))
}

/// Writes the page of a run that has just ended, and says where it is. A page that can't be written is no failure of the run.
pub(super) fn after_run(session: &Session, run: &RunRecord, common: &Common) {
    let path = session.artifacts.page();
    let run = run.without_secrets();
    let written = page_of(&[(session, &run)]).and_then(|page| {
        let html = report::page_html(&run.pipeline, &page).map_err(no_page)?;
        write(&path, &html, &session.store)
    });
    match written {
        Ok(()) => report::page_written(&path, common.style()),
        Err(Failure::Io { what, source }) => tracing::warn!("no report of this run: {what}: {source}"),
        Err(_) => tracing::warn!("no report of this run: its results can't be read; `imp-flow report` tries again"),
    }
}

/// Writes a page for those who may read the logs in it.
fn write(path: &Path, html: &str, store: &Store) -> Result<(), Failure> {
    artifacts::write_file(path, html.as_bytes(), store.private_access())
        .map_err(|source| Failure::Io { what: format!("can't write {}", path.display()), source })
}

/// The last run of a pipeline file or of a pipeline of this name, or else the run with this id or name.
pub(super) fn run_of(store: &Store, target: &str) -> Result<RunRecord, Failure> {
    let file = Path::new(target).is_file().then(|| std::path::absolute(target).ok()).flatten();
    let is_meant = |run: &RunRecord| match &file {
        Some(file) => run.file == *file,
        None => run.pipeline == target,
    };
    let named = |run: &RunRecord| run.id == target || run.name.as_deref() == Some(target);
    let runs = store.runs()?;
    let found = runs.iter().find(|run| named(run)).or_else(|| runs.iter().find(|run| is_meant(run)));
    match found {
        Some(run) => Ok(run.clone()),
        // For its message.
        None => find_run(store, Some(target)),
    }
}

/// `report.html` for the last run of a pipeline, another name for others.
fn usual_path(store: &Store, runs: &[RunRecord], common: &Common) -> Result<PathBuf, Failure> {
    let run = &runs[0];
    let artifacts = Artifacts::new(&settings(common)?.artifacts, &run.pipeline);
    let last = store.runs()?.into_iter().find(|other| other.pipeline == run.pipeline);
    Ok(match runs {
        [_] if last.is_none_or(|last| last.id == run.id) => artifacts.page(),
        [_] => artifacts.folder().join(format!("report-{}.html", run.id)),
        _ => artifacts.folder().join("report-compared.html"),
    })
}

fn title(runs: &[RunRecord]) -> String {
    let mut names: Vec<&str> = runs.iter().map(|run| run.pipeline.as_str()).collect();
    names.dedup();
    names.join(", ")
}

fn no_page(error: serde_json::Error) -> Failure {
    Failure::Io { what: "can't make the report".into(), source: error.into() }
}

/// The data of a page.
fn page_of(runs: &[(&Session, &RunRecord)]) -> Result<Page, Failure> {
    let before = runs.iter().map(|(session, run)| {
        let before = session.store.run_before(run)?;
        Ok(before.map(|run| run_of_today(run, &session.store)))
    });
    let before = before.collect::<Result<Vec<_>, StoreError>>()?;
    let now: Vec<RunRecord> = runs.iter().map(|(session, run)| run_of_today((*run).clone(), &session.store)).collect();
    let runs: Vec<(&Session, &RunRecord)> = runs.iter().zip(&now).map(|((session, _), run)| (*session, run)).collect();
    let mut sources = Vec::new();
    for ((session, run), before) in runs.iter().zip(&before) {
        sources.push(RunSource {
            store: &session.store,
            pipeline: &session.pipeline,
            graph: &session.graph,
            run,
            before: before.as_ref(),
            attempts: attempts(session, run)?,
        });
    }
    Ok(view::page(&sources, tables(&runs)))
}

/// The keys of the stages that have no result: their logs and metrics are in their work folders until they run again.
fn attempts(session: &Session, run: &RunRecord) -> Result<BTreeMap<usize, Digest>, Failure> {
    if !run.points.iter().flat_map(|point| &point.stages).any(is_open) {
        return Ok(BTreeMap::new());
    }
    let open: Vec<(&str, &str)> = run
        .points
        .iter()
        .flat_map(|point| point.stages.iter().filter(|stage| is_open(stage)).map(|stage| (&*point.label, &*stage.name)))
        .collect();
    let is_one_of = |index: &usize| {
        let (point, name) = &session.pipeline.stages[*index].owners[0];
        open.contains(&(session.pipeline.points[*point].label.as_str(), name.as_str()))
    };
    let verdicts = session.planner().plan(&Selection::everything(&session.pipeline))?;
    let keys = verdicts.into_iter().filter_map(|(index, verdict)| match verdict {
        Verdict::Run { key, .. } if is_one_of(&index) => Some((index, key)),
        _ => None,
    });
    Ok(keys.collect())
}

/// The tables of published results in which a run has a model.
fn tables(runs: &[(&Session, &RunRecord)]) -> Vec<serde_json::Value> {
    let mut tables = Vec::new();
    for table in kinds::tables() {
        let rows: Vec<_> = runs
            .iter()
            .flat_map(|(session, run)| {
                let results: BTreeMap<&str, _> = session
                    .pipeline
                    .stages
                    .iter()
                    .filter_map(|stage| {
                        let (point, name) = &stage.owners[0];
                        let label = &session.pipeline.points[*point].label;
                        let point = run.points.iter().find(|point| point.label == *label)?;
                        let found = point.stages.iter().find(|recorded| recorded.name == *name)?;
                        Some((stage.name.as_str(), &found.results))
                    })
                    .collect();
                model_rows(table, &session.pipeline, |stage| results.get(stage).copied())
            })
            .collect();
        if !rows.is_empty() {
            tables.push(report::published_json(table, &rows));
        }
    }
    tables
}
