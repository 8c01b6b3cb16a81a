//! `imp-flow compare`.

use std::{cmp::Ordering, collections::BTreeMap, process::ExitCode};

use globset::Glob;
use imp_stages::{
    contract::figure::{Better, Role},
    kinds,
};

use super::session::{existing_store, find_run, usage};
use crate::{
    cli::{Common, CompareArgs},
    failure::Failure,
    pipeline::{Diagnostic, Document},
    report::{self, Comparison},
    store::{RunPoint, RunRecord, RunStage},
    view::run_of_today,
};

/// Compares points or runs: shows the parameters that differ, and the results.
pub(crate) fn compare(args: &CompareArgs, common: &Common) -> Result<ExitCode, Failure> {
    let (_, store) = existing_store(common)?;
    let runs = match args.runs.as_slice() {
        [] => vec![find_run(&store, None)?],
        names => names.iter().map(|name| find_run(&store, Some(name))).collect::<Result<_, _>>()?,
    };
    let runs: Vec<RunRecord> = runs.into_iter().map(|run| run_of_today(run, &store)).collect();
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
    for text in &args.conditions {
        let condition = Condition::parse(text).map_err(|message| usage(Diagnostic::new(message, None)))?;
        let column = find_column(&comparison, condition.column)?;
        comparison.keep_rows(|row| condition.holds(comparison_value(row, column)));
    }
    if let Some(sort) = &args.sort {
        comparison.sort_by(find_column(&comparison, sort)?);
    }
    let all = args.all || args.csv || common.json;
    let hidden = choose_metrics(&mut comparison, &rows, args, all)?;
    if !all && args.metrics.is_empty() {
        comparison.set_apart_equal();
    }
    report::compare(&comparison, args.csv, common.json);
    if hidden > 0 {
        report::note(&format!("{hidden} more figures: --all, or --metrics GLOB"), common.style());
    }
    Ok(ExitCode::SUCCESS)
}

/// The column of this name, or the first that ends with it.
fn find_column(comparison: &Comparison, name: &str) -> Result<usize, Failure> {
    let columns = comparison.columns();
    let found = columns.iter().position(|column| column == name);
    found.or_else(|| columns.iter().position(|column| column.ends_with(&format!(".{name}")))).ok_or_else(|| {
        let problem = Diagnostic::new(format!("there is no column `{name}`"), None);
        usage(problem.suggest(name, columns.iter().map(String::as_str)))
    })
}

/// Leaves out the metrics that are not asked for. Returns how many of those that are there nobody chose to leave out.
fn choose_metrics(comparison: &mut Comparison, rows: &[Row], args: &CompareArgs, all: bool) -> Result<usize, Failure> {
    let before = comparison.metrics.len();
    if args.metrics.is_empty() {
        let is_headline =
            |name: &String| rows.iter().any(|row| row.metrics.get(name).is_some_and(|metric| metric.headline));
        comparison.keep_metrics(|name| all || is_headline(name));
        return Ok(before - comparison.metrics.len());
    }
    let mut globs = Vec::new();
    for text in &args.metrics {
        let glob = Glob::new(text).map_err(|error| usage(Diagnostic::new(format!("--metrics: {error}"), None)))?;
        let glob = glob.compile_matcher();
        if !comparison.metrics.iter().any(|name| glob.is_match(name)) {
            let problem = Diagnostic::new(format!("no figure matches `{text}`"), None);
            return Err(usage(problem.suggest(text, comparison.metrics.iter().map(String::as_str))));
        }
        globs.push(glob);
    }
    comparison.keep_metrics(|name| globs.iter().any(|glob| glob.is_match(name)));
    Ok(0)
}

/// A condition on a row: a column, how it compares, and a value.
#[derive(Debug, PartialEq)]
struct Condition<'a> {
    column: &'a str,
    operator: &'a str,
    value: &'a str,
}

impl<'a> Condition<'a> {
    fn parse(text: &'a str) -> Result<Self, String> {
        let form = || format!("`{text}` must be like `pope.accuracy>80`, with =, !=, <, <=, > or >=");
        let at = text.find(['<', '>', '=', '!']).ok_or_else(form)?;
        let (column, rest) = text.split_at(at);
        let operator = ["<=", ">=", "!=", "<", ">", "="].into_iter().find(|operator| rest.starts_with(operator));
        let (operator, value) = rest.split_at(operator.ok_or_else(form)?.len());
        let (column, value) = (column.trim(), value.trim());
        let is_order = !["=", "!="].contains(&operator);
        if column.is_empty() || value.is_empty() || (is_order && value.parse::<f64>().is_err()) {
            return Err(form());
        }
        Ok(Self { column, operator, value })
    }

    /// Whether it holds for the text of a value. Rows without a value don't fulfil any.
    fn holds(&self, value: Option<String>) -> bool {
        let Some(value) = value else { return false };
        let numbers = value.parse::<f64>().ok().zip(self.value.parse::<f64>().ok());
        let order = numbers.and_then(|(value, wanted)| value.partial_cmp(&wanted));
        match self.operator {
            "=" => order.map_or(value == self.value, Ordering::is_eq),
            "!=" => !order.map_or(value == self.value, Ordering::is_eq),
            "<" => order.is_some_and(Ordering::is_lt),
            "<=" => order.is_some_and(Ordering::is_le),
            ">" => order.is_some_and(Ordering::is_gt),
            _ => order.is_some_and(Ordering::is_ge),
        }
    }
}

/// The value of a row in a column, as text.
fn comparison_value(row: &report::CompareRow, column: usize) -> Option<String> {
    match row.parameters.get(column) {
        Some(parameter) => parameter.as_ref().map(|value| value.as_str().map_or_else(|| value.to_string(), Into::into)),
        None => row.metrics[column - row.parameters.len()].map(|value| value.to_string()),
    }
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
    headline: bool,
}

impl Row {
    fn new(run: &RunRecord, point: &RunPoint, runs: usize) -> Self {
        let mut parameters = Document::parameters(&run.document);
        let parse = |text: &str| format!("value = {text}").parse::<toml::Table>().ok()?.remove("value");
        parameters.extend(point.values.iter().filter_map(|(key, text)| Some((key.clone(), parse(text)?))));
        let metrics = point.stages.iter().flat_map(metrics);
        let own = run.name.as_ref().unwrap_or(&run.id);
        let label = match (point.label.as_str(), runs) {
            ("", _) => own.clone(),
            (label, 1) => label.to_string(),
            (label, _) => format!("{own}/{label}"),
        };
        Self { label, parameters, metrics: metrics.collect() }
    }
}

/// The figures of a stage, as `STAGE.FIGURE`.
fn metrics(stage: &RunStage) -> Vec<(String, Metric)> {
    let metric = |(name, value): (&String, &f64)| {
        let figure = kinds::figure(&stage.kind, name);
        let better = figure.map_or(Better::Neither, |figure| figure.better);
        let headline = figure.is_some_and(|figure| figure.role == Role::Headline);
        (format!("{}.{name}", stage.name), Metric { value: *value, better, headline })
    };
    stage.results.iter().map(metric).collect()
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
    Comparison { parameters, metrics, better, rows: shown, equal: Vec::new() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn conditions_compare_numbers_as_numbers() {
        for (text, value, holds) in [
            ("a.b>0.8", "0.85", true),
            ("a.b>=85", "85", true),
            ("a.b < 1e3", "999", true),
            ("a.b<=2", "10", false),
            ("rank=64", "64.0", true),
            ("rank!=64", "128", true),
            ("template=phi2", "phi2", true),
            ("template!=phi2", "phi2", false),
            ("a>1", "text", false),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(Some(value.into())), holds, "{text} {value}");
            assert!(!Condition::parse(text).unwrap().holds(None));
        }
        for bad in ["a.b", ">1", "a>", "a>b", ""] {
            assert!(Condition::parse(bad).unwrap_err().contains("must be like"), "{bad}");
        }
    }
}
