//! Shows points or runs in one table. Independent of where the columns and rows come from.

use std::cmp::Ordering;

use imp_stages::contract::figure::Better;

use super::{
    print::print,
    style::{DIM, GOOD},
    table::Table,
    units,
};

/// Rows with the same columns.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) parameters: Vec<String>,
    pub(crate) metrics: Vec<String>,
    /// Which end of each metric is better.
    pub(crate) better: Vec<Better>,
    pub(crate) rows: Vec<CompareRow>,
    /// Metrics that are no column, since all rows have the same value.
    pub(crate) equal: Vec<(String, f64)>,
}

/// A point or a run.
#[derive(Debug)]
pub(crate) struct CompareRow {
    pub(crate) label: String,
    pub(crate) parameters: Vec<Option<toml::Value>>,
    pub(crate) metrics: Vec<Option<f64>>,
}

/// Orders the better value first, or the larger one if neither end is better.
fn best_first(better: Better, a: f64, b: f64) -> Ordering {
    match better {
        Better::Higher | Better::Neither => b.total_cmp(&a),
        Better::Lower => a.total_cmp(&b),
    }
}

impl Comparison {
    /// The names of all columns that can be sorted.
    pub(crate) fn columns(&self) -> Vec<String> {
        self.parameters.iter().chain(&self.metrics).cloned().collect()
    }

    /// Leaves out the other rows.
    pub(crate) fn keep_rows(&mut self, keep: impl Fn(&CompareRow) -> bool) {
        self.rows.retain(keep);
    }

    /// Leaves out the other metrics.
    pub(crate) fn keep_metrics(&mut self, keep: impl Fn(&String) -> bool) {
        let kept: Vec<bool> = self.metrics.iter().map(keep).collect();
        retain(&mut self.metrics, &kept);
        retain(&mut self.better, &kept);
        for row in &mut self.rows {
            retain(&mut row.metrics, &kept);
        }
    }

    /// Makes metrics no column that tell no row from another.
    pub(crate) fn set_apart_equal(&mut self) {
        let value = |column: usize| {
            let first = self.rows.first()?.metrics[column]?;
            let is_same = |row: &CompareRow| row.metrics[column].is_some_and(|value| value.total_cmp(&first).is_eq());
            (self.rows.len() > 1 && self.rows.iter().all(is_same)).then_some(first)
        };
        let names = self.metrics.iter().enumerate();
        let equal: Vec<_> = names.filter_map(|(column, name)| Some((name.clone(), value(column)?))).collect();
        self.keep_metrics(|name| equal.iter().all(|(other, _)| other != name));
        self.equal = equal;
    }

    /// Sorts by a column: metrics from the best, parameters from the smallest. Rows without a value come last.
    pub(crate) fn sort_by(&mut self, column: usize) {
        let parameters = self.parameters.len();
        let number = |value: &Option<toml::Value>| match value {
            Some(toml::Value::Integer(number)) => Some(*number as f64),
            Some(toml::Value::Float(number)) => Some(*number),
            _ => None,
        };
        self.rows.sort_by(|a, b| {
            if column < parameters {
                let (a, b) = (&a.parameters[column], &b.parameters[column]);
                return match (number(a), number(b)) {
                    (Some(a), Some(b)) => a.total_cmp(&b),
                    _ => (a.is_none(), shown(a.as_ref())).cmp(&(b.is_none(), shown(b.as_ref()))),
                };
            }
            let column = column - parameters;
            match (a.metrics[column], b.metrics[column]) {
                (Some(a), Some(b)) => best_first(self.better[column], a, b),
                (a, b) => a.is_none().cmp(&b.is_none()),
            }
        });
    }

    /// The best value of a metric. `None` if neither end is better or all rows have the same value.
    fn best(&self, column: usize) -> Option<f64> {
        if self.better[column] == Better::Neither {
            return None;
        }
        let values = || self.rows.iter().filter_map(|row| row.metrics[column]);
        let best = values().min_by(|a, b| best_first(self.better[column], *a, *b))?;
        values().any(|value| value.total_cmp(&best) != Ordering::Equal).then_some(best)
    }
}

/// Keeps the elements at which `kept` is true.
fn retain<T>(list: &mut Vec<T>, kept: &[bool]) {
    let mut kept = kept.iter();
    list.retain(|_| kept.next().is_some_and(|kept| *kept));
}

/// Shows a comparison.
pub(crate) fn compare(comparison: &Comparison, csv: bool, json: bool) {
    if json {
        return as_json(comparison);
    }
    if csv {
        return as_csv(comparison);
    }
    let best: Vec<Option<f64>> = (0..comparison.metrics.len()).map(|column| comparison.best(column)).collect();
    let columns = comparison.columns();
    if columns.is_empty() {
        let words = if comparison.equal.is_empty() {
            "and their stages report no such metrics"
        } else {
            "and the same results"
        };
        print(&format!("no differences: these runs have the same parameters, {words}"));
        return print_equal(comparison);
    }
    if comparison.rows.is_empty() {
        return print("no row fulfils the conditions");
    }
    let lines: Vec<Vec<String>> = comparison.rows.iter().map(|row| cells(row, &best)).collect();
    let upright = upright(&columns, &lines);
    // A line per column, where there is one row, or where columns would not fit beside each other.
    let lies = lines.len() == 1 || upright.width() > terminal_width();
    let turned = turned(&columns, &lines);
    if lies && turned.width() < upright.width() {
        turned.print();
    } else {
        upright.print();
    }
    if best.iter().any(Option::is_some) {
        print(&format!("\n{GOOD}*{GOOD:#} {DIM}best in its column{DIM:#}"));
    }
    print_equal(comparison);
}

/// `d.score is 3, pope.accuracy is 92.8 in all`.
fn print_equal(comparison: &Comparison) {
    let equal: Vec<String> =
        comparison.equal.iter().map(|(name, value)| format!("{name} is {}", units::figure(*value))).collect();
    if !equal.is_empty() {
        print(&format!("\n{DIM}{} in all (--all: as columns){DIM:#}", equal.join(", ")));
    }
}

/// The cells of a row: its label, parameters and metrics.
fn cells(row: &CompareRow, best: &[Option<f64>]) -> Vec<String> {
    let parameters = row.parameters.iter().map(|value| shown(value.as_ref()).unwrap_or_else(|| "-".into()));
    let metrics = row.metrics.iter().zip(best).map(|(value, best)| match value {
        Some(value) if Some(*value) == *best => format!("*{}", units::figure(*value)),
        Some(value) => units::figure(*value),
        None => "-".into(),
    });
    std::iter::once(row.label.clone()).chain(parameters).chain(metrics).collect()
}

/// A line for each row.
fn upright(columns: &[String], lines: &[Vec<String>]) -> Table {
    let head: Vec<&str> = std::iter::once("point").chain(columns.iter().map(String::as_str)).collect();
    let mut table = Table::new(&head).right(&head[1..]);
    for line in lines {
        table.row(line.iter().cloned());
    }
    table
}

/// A line for each column.
fn turned(columns: &[String], lines: &[Vec<String>]) -> Table {
    let head: Vec<&str> = std::iter::once("point").chain(lines.iter().map(|line| line[0].as_str())).collect();
    let mut table = Table::new(&head).right(&head[1..]);
    for (number, column) in columns.iter().enumerate() {
        table.row(std::iter::once(column.clone()).chain(lines.iter().map(|line| line[number + 1].clone())));
    }
    table
}

/// The width of the terminal, if that is where the table goes; else there is no limit.
fn terminal_width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(usize::MAX, |(width, _)| width.0.into())
}

/// A value as text: strings without quotes, other values as in a pipeline file.
fn shown(value: Option<&toml::Value>) -> Option<String> {
    value.map(|value| value.as_str().map_or_else(|| value.to_string(), Into::into))
}

fn as_json(comparison: &Comparison) {
    for row in &comparison.rows {
        let parameters: serde_json::Map<String, serde_json::Value> = comparison
            .parameters
            .iter()
            .cloned()
            .zip(row.parameters.iter().map(|value| serde_json::json!(value)))
            .collect();
        let metrics: serde_json::Map<String, serde_json::Value> =
            comparison.metrics.iter().cloned().zip(row.metrics.iter().map(|value| serde_json::json!(value))).collect();
        print(&serde_json::json!({"point": row.label, "parameters": parameters, "metrics": metrics}).to_string());
    }
}

fn as_csv(comparison: &Comparison) {
    let line = |cells: Vec<String>| print(&cells.iter().map(|cell| quoted(cell)).collect::<Vec<_>>().join(","));
    line(std::iter::once("point".to_string()).chain(comparison.columns()).collect());
    for row in &comparison.rows {
        let parameters = row.parameters.iter().map(|value| shown(value.as_ref()).unwrap_or_default());
        let metrics = row.metrics.iter().map(|value| value.map(|value| value.to_string()).unwrap_or_default());
        line(std::iter::once(row.label.clone()).chain(parameters).chain(metrics).collect());
    }
}

/// Quotes a cell of a CSV file as in RFC 4180, if necessary.
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_value_comes_first_and_missing_values_last() {
        let row = |label: &str, rank: i64, loss: Option<f64>, accuracy: Option<f64>, images: f64| CompareRow {
            label: label.into(),
            parameters: vec![Some(toml::Value::Integer(rank))],
            metrics: vec![loss, accuracy, Some(images)],
        };
        let mut comparison = Comparison {
            parameters: vec!["rank".into()],
            metrics: ["a.loss", "b.accuracy", "c.images"].map(String::from).to_vec(),
            better: vec![Better::Lower, Better::Higher, Better::Neither],
            rows: vec![
                row("x", 128, Some(0.5), Some(80.0), 2.0),
                row("y", 64, None, Some(90.0), 3.0),
                row("z", 256, Some(0.4), None, 1.0),
            ],
            equal: Vec::new(),
        };
        let mut sorted = |column| {
            comparison.sort_by(column);
            comparison.rows.iter().map(|row| row.label.as_str()).collect::<String>()
        };
        assert_eq!([0, 1, 2, 3].map(&mut sorted), ["yxz", "zxy", "yxz", "yxz"]);
        assert_eq!([0, 1, 2].map(|metric| comparison.best(metric)), [Some(0.4), Some(90.0), None]);
    }

    #[test]
    fn what_is_the_same_in_all_rows_is_no_column() {
        let row = |loss: Option<f64>, score: f64| CompareRow {
            label: "x".into(),
            parameters: vec![None],
            metrics: vec![loss, Some(score), Some(3.0)],
        };
        let mut comparison = Comparison {
            parameters: vec!["rank".into()],
            metrics: ["a.loss", "b.score", "c.images"].map(String::from).to_vec(),
            better: vec![Better::Lower, Better::Higher, Better::Neither],
            rows: vec![row(Some(0.5), 1.0), row(None, 2.0), row(Some(0.5), 1.0)],
            equal: Vec::new(),
        };
        comparison.set_apart_equal();
        assert_eq!((comparison.metrics, comparison.better.len()), (vec!["a.loss".to_string(), "b.score".into()], 2));
        assert_eq!(comparison.equal, [("c.images".to_string(), 3.0)]);
        assert!(comparison.rows.iter().all(|row| row.metrics.len() == 2));
        // One row tells what it has.
        comparison = Comparison {
            rows: vec![row(None, 1.0)],
            metrics: vec!["a".into(), "b".into(), "c".into()],
            better: vec![Better::Neither; 3],
            ..comparison
        };
        comparison.set_apart_equal();
        assert_eq!((comparison.metrics.len(), comparison.equal.len()), (3, 0));
    }

    #[test]
    fn cells_are_quoted_where_they_must_be() {
        assert_eq!([quoted("plain"), quoted("a,b"), quoted("say \"x\"")], ["plain", "\"a,b\"", "\"say \"\"x\"\"\""]);
    }
}
