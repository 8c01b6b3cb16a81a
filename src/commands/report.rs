//! `imp-flow report`: what cached stages have found out.

use std::{collections::BTreeMap, process::ExitCode};

use super::session::{Asked, Session};
use crate::{
    cli::{Common, ReportEvalArgs},
    failure::Failure,
    pipeline::{Pipeline, StageDecl},
    report::{self, EvalRow, Format, Score},
    scheduler::{Selection, Verdict},
};

/// The table of the nine benchmarks, with the models of these pipelines.
pub(crate) fn report_eval(args: &ReportEvalArgs, common: &Common) -> Result<ExitCode, Failure> {
    let mut rows = Vec::new();
    for file in &args.files {
        let asked = Asked { file: file.clone(), overrides: args.overrides.clone(), sweep: false };
        let session = Session::open(asked, common)?;
        let cached = cached_results(&session)?;
        let found = eval_rows(&session.pipeline, |stage| cached.get(stage));
        if found.is_empty() {
            report::no_eval(&session.pipeline.name, &file.display().to_string(), common.style());
        }
        rows.extend(found);
    }
    let format = match (common.json, args.markdown) {
        (true, _) => Format::Json,
        (false, true) => Format::Markdown,
        (false, false) => Format::Text,
    };
    report::eval(&rows, format);
    Ok(ExitCode::SUCCESS)
}

/// The figures of the stages that are in the cache.
fn cached_results(session: &Session) -> Result<BTreeMap<String, BTreeMap<String, f64>>, Failure> {
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

/// A row for each model that a pipeline evaluates. `results` has the figures of a stage by its name.
pub(super) fn eval_rows<'r>(
    pipeline: &Pipeline,
    results: impl Fn(&str) -> Option<&'r BTreeMap<String, f64>>,
) -> Vec<EvalRow> {
    let mut models: Vec<(&str, BTreeMap<String, Score>)> = Vec::new();
    for stage in pipeline.stages.iter().filter(|stage| is_shown(stage)) {
        let Some(figures) = results(&stage.name).filter(|figures| !figures.is_empty()) else { continue };
        let (Some(benchmark), Some(model)) = (benchmark(stage), model_of(pipeline, stage)) else { continue };
        let score = Score { figures: figures.clone(), part: stage.config["limit"] != 0 };
        let at = models.iter().position(|(name, _)| *name == model).unwrap_or_else(|| {
            models.push((model, BTreeMap::new()));
            models.len() - 1
        });
        models[at].1.entry(benchmark.into()).or_insert(score);
    }
    let alone = models.len() == 1;
    let name = |model: &str| if alone { pipeline.name.clone() } else { format!("{}/{model}", pipeline.name) };
    models.into_iter().map(|(model, scores)| EvalRow { model: name(model), scores }).collect()
}

/// The benchmark of an eval stage.
pub(super) fn benchmark(stage: &StageDecl) -> Option<&str> {
    stage.config["benchmark"].as_str().filter(|_| stage.kind == "eval")
}

/// Stages that show no images are for other comparisons.
fn is_shown(stage: &StageDecl) -> bool {
    stage.kind == "eval" && stage.config["ablate_image"] != true
}

/// The stage whose model has answered.
fn model_of<'p>(pipeline: &'p Pipeline, stage: &'p StageDecl) -> Option<&'p str> {
    let input = |name: &str| stage.inputs.get(name).map(|from| &pipeline.stages[*from]);
    input("model").map(|model| model.name.as_str()).or_else(|| {
        let answers = input("answers").or_else(|| input("answers[0]"))?;
        model_of(pipeline, answers)
    })
}

#[cfg(test)]
mod tests;
