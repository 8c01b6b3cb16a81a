//! `imp-flow report`: results of cached stages.

use std::{collections::BTreeMap, process::ExitCode};

use imp_stages::{
    contract::{
        input::Input,
        published::{PublishedTable, Shown},
    },
    kinds,
};

use super::session::{Request, Session};
use crate::{
    cli::{Common, ReportEvalArgs},
    failure::Failure,
    pipeline::{Pipeline, StageDecl},
    report::{self, Format, ModelRow, Score},
    scheduler::{Selection, Verdict},
};

/// Shows the tables of published results, with the models of these pipelines.
pub(crate) fn report_eval(args: &ReportEvalArgs, common: &Common) -> Result<ExitCode, Failure> {
    let mut tables: Vec<(&PublishedTable, Vec<ModelRow>)> = kinds::tables().map(|table| (table, Vec::new())).collect();
    for file in &args.files {
        let request = Request { file: file.clone(), overrides: args.overrides.clone(), sweep: false, device: None };
        let session = Session::open(request, common)?;
        let cached = cached_results(&session)?;
        let mut found = false;
        for (table, rows) in &mut tables {
            let models = model_rows(table, &session.pipeline, |stage| cached.get(stage));
            found |= !models.is_empty();
            rows.extend(models);
        }
        if !found {
            let name = &session.pipeline.name;
            let runs = session.store.runs()?;
            let last = runs.into_iter().find(|run| run.pipeline == *name && !run.sweep).map(|run| run.overrides);
            let last = last.filter(|last| *last != args.overrides).unwrap_or_default();
            report::no_results(name, &file.display().to_string(), &last, common.style());
        }
    }
    let format = Format::of(common.json, args.markdown);
    for (table, rows) in &tables {
        report::published(table, rows, format);
    }
    Ok(ExitCode::SUCCESS)
}

/// The results of cached stages, by stage.
pub(super) fn cached_results(session: &Session) -> Result<BTreeMap<String, BTreeMap<String, f64>>, Failure> {
    let mut results = BTreeMap::new();
    for (index, verdict) in session.planner().plan(&Selection::everything(&session.pipeline))? {
        if let Verdict::Hit { key } = verdict
            && let Some(receipt) = session.store.receipt(key)?
        {
            results.insert(session.pipeline.stages[index].name.clone(), receipt.results);
        }
    }
    Ok(results)
}

/// A row for each model that has results in the table. `results` returns the results of a stage.
pub(super) fn model_rows<'r>(
    table: &PublishedTable,
    pipeline: &Pipeline,
    results: impl Fn(&str) -> Option<&'r BTreeMap<String, f64>>,
) -> Vec<ModelRow> {
    let mut rows = models(table, pipeline, results);
    let alone = rows.len() == 1;
    let name = |model: &str| if alone { pipeline.name.clone() } else { format!("{}/{model}", pipeline.name) };
    for row in &mut rows {
        row.model = name(&row.model);
    }
    rows
}

/// The same, each row named after the stage that made the model.
pub(super) fn models<'r>(
    table: &PublishedTable,
    pipeline: &Pipeline,
    results: impl Fn(&str) -> Option<&'r BTreeMap<String, f64>>,
) -> Vec<ModelRow> {
    let mut models: Vec<(&str, BTreeMap<&'static str, Score>)> = Vec::new();
    for stage in &pipeline.stages {
        let Some(shown) = shown_in(table, stage) else { continue };
        let Some(figures) = results(&stage.name).filter(|figures| !figures.is_empty()) else { continue };
        let Some(model) = model_of(pipeline, stage, shown.model, shown.through) else { continue };
        let score = Score { figures: figures.clone(), partial: shown.partial };
        let at = models.iter().position(|(name, _)| *name == model).unwrap_or_else(|| {
            models.push((model, BTreeMap::new()));
            models.len() - 1
        });
        models[at].1.entry(shown.column).or_insert(score);
    }
    models.into_iter().map(|(model, scores)| ModelRow { model: model.into(), scores }).collect()
}

/// The tables for which a pipeline has a stage for every column.
pub(super) fn filled_tables(pipeline: &Pipeline) -> Vec<&'static PublishedTable> {
    let columns = |table| pipeline.stages.iter().filter_map(move |stage| Some(shown_in(table, stage)?.column));
    kinds::tables().filter(|table| table.is_filled_by(columns(table))).collect()
}

/// How a stage is shown in a table, if at all.
fn shown_in(table: &PublishedTable, stage: &StageDecl) -> Option<Shown> {
    stage.shown.filter(|shown| shown.table.name == table.name)
}

/// The name of the stage that is the input `model` of `stage`, or of the stage before it along the inputs `through`.
fn model_of<'p>(pipeline: &'p Pipeline, stage: &'p StageDecl, model: &str, through: &str) -> Option<&'p str> {
    let input = |name: &str| stage.inputs.get(name).map(|from| &pipeline.stages[*from]);
    input(model).map(|found| found.name.as_str()).or_else(|| {
        let before = input(through).or_else(|| input(&Input::name_at(through, 0)))?;
        model_of(pipeline, before, model, through)
    })
}

#[cfg(test)]
mod tests;
