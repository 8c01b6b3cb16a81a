//! `imp-flow compare`.

use std::{collections::BTreeMap, process::ExitCode};

use imp_stages::{contract::figure::Better, kinds};

use super::session::{existing_store, find_run, usage};
use crate::{
    cli::Common,
    failure::Failure,
    pipeline::{Diagnostic, Document},
    report::{self, Comparison},
    store::{RunPoint, RunRecord},
};

/// Compares points or runs: shows the parameters that differ, and the results.
pub(crate) fn compare(names: &[String], sort: Option<&str>, csv: bool, common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    let runs = match names {
        [] => vec![find_run(&store, None)?],
        names => names.iter().map(|name| find_run(&store, Some(name))).collect::<Result<_, _>>()?,
    };
    let rows: Vec<Row> =
        runs.iter().flat_map(|run| run.points.iter().map(|point| Row::new(run, point, runs.len()))).collect();
    let mut comparison = table(&rows);
    for run in &runs {
        let open = run.points.iter().flat_map(|point| &point.stages).filter(|stage| stage.key.is_none()).count();
        if open > 0 {
            report::note(
                &format!("note: {open} stages of run {} have no results (run state: {})", run.id, run.ending),
                common.style(),
            );
        }
    }
    if let Some(sort) = sort {
        let columns = comparison.columns();
        let found = columns.iter().position(|column| column == sort);
        let found = found.or_else(|| columns.iter().position(|column| column.ends_with(&format!(".{sort}"))));
        let Some(found) = found else {
            let problem = Diagnostic::new(format!("there is no column `{sort}`"), None);
            return Err(usage(problem.suggest(sort, columns.iter().map(String::as_str))));
        };
        comparison.sort_by(found);
    }
    report::compare(&comparison, csv, common.json);
    Ok(ExitCode::SUCCESS)
}

/// A point of a run: its parameters and results.
struct Row {
    label: String,
    parameters: BTreeMap<String, toml::Value>,
    metrics: BTreeMap<String, Metric>,
}

struct Metric {
    value: f64,
    better: Better,
}

impl Row {
    fn new(run: &RunRecord, point: &RunPoint, runs: usize) -> Self {
        let mut parameters = Document::parameters(&run.document);
        let parse = |text: &str| format!("value = {text}").parse::<toml::Table>().ok()?.remove("value");
        parameters.extend(point.values.iter().filter_map(|(key, text)| Some((key.clone(), parse(text)?))));
        let metrics = point.stages.iter().flat_map(|stage| {
            stage.results.iter().map(|(name, value)| {
                let better = kinds::figure(&stage.kind, name).map_or(Better::Neither, |figure| figure.better);
                (format!("{}.{name}", stage.name), Metric { value: *value, better })
            })
        });
        let own = run.name.as_ref().unwrap_or(&run.id);
        let label = match (point.label.as_str(), runs) {
            ("", _) => own.clone(),
            (label, 1) => label.to_string(),
            (label, _) => format!("{own}/{label}"),
        };
        Self { label, parameters, metrics: metrics.collect() }
    }
}

/// The parameters that differ between rows, and all metrics.
fn table(rows: &[Row]) -> Comparison {
    let mut names: Vec<&String> = rows.iter().flat_map(|row| row.parameters.keys()).collect();
    names.sort_unstable();
    names.dedup();
    let differs = |name: &&String| rows.iter().any(|row| row.parameters.get(*name) != rows[0].parameters.get(*name));
    let parameters: Vec<String> = names.into_iter().filter(differs).cloned().collect();
    let mut metrics: Vec<String> = rows.iter().flat_map(|row| row.metrics.keys().cloned()).collect();
    metrics.sort_unstable();
    metrics.dedup();
    // In different runs, a metric of the same name may come from different kinds of stages.
    let better_of = |name: &String| {
        let mut ends = rows.iter().filter_map(|row| Some(row.metrics.get(name)?.better));
        let first = ends.next().unwrap_or(Better::Neither);
        if ends.all(|end| end == first) { first } else { Better::Neither }
    };
    let better = metrics.iter().map(better_of).collect();
    let shown = rows
        .iter()
        .map(|row| report::CompareRow {
            label: row.label.clone(),
            parameters: parameters.iter().map(|name| row.parameters.get(name).cloned()).collect(),
            metrics: metrics.iter().map(|name| row.metrics.get(name).map(|metric| metric.value)).collect(),
        })
        .collect();
    Comparison { parameters, metrics, better, rows: shown }
}
