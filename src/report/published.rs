//! Shows tables of published results, followed by the user's models. Independent of what a table is about and of where results
//! come from.

use std::{collections::BTreeMap, fmt::Write};

use imp_stages::contract::published::{Column, PublishedTable};
use serde_json::{Value, json};

use super::{
    foreign::one_line,
    print::{eprint, print},
    style::{DIM, GOOD, Style},
};

/// A model of the user.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelRow {
    pub(crate) model: String,
    /// Scores by the name of the column.
    pub(crate) scores: BTreeMap<&'static str, Score>,
}

/// The results of a stage.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// Values by the name of the figure.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Whether they cover only part of the data.
    pub(crate) partial: bool,
}

/// The format of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Markdown,
    Json,
}

impl Format {
    /// The format that was asked for.
    pub(crate) fn of(json: bool, markdown: bool) -> Self {
        match (json, markdown) {
            (true, _) => Self::Json,
            (false, true) => Self::Markdown,
            (false, false) => Self::Text,
        }
    }
}

/// Prints a table.
pub(crate) fn published(table: &PublishedTable, rows: &[ModelRow], format: Format) {
    print(
        match format {
            Format::Text => text(table, rows),
            Format::Markdown => markdown(table, rows),
            Format::Json => published_json(table, rows).to_string(),
        }
        .trim_end(),
    );
}

/// Tells the user that a pipeline has no cached results, and which changes its last run was with, if with others.
pub(crate) fn no_results(pipeline: &str, file: &str, last: &[String], style: Style) {
    if style.quiet {
        return;
    }
    let changes: Vec<String> = last.iter().map(|change| format!("--set {}", one_line(change))).collect();
    eprint(&match last {
        [] => format!("note: {pipeline} has no cached results: run `imp-flow run {file}` first"),
        _ => format!(
            "note: {pipeline} has no cached results as it is asked for; its last run was with {}: add that",
            changes.join(" ")
        ),
    });
}

impl ModelRow {
    /// The value in a column, and whether it is of a part of the data only.
    pub(super) fn value(&self, column: &Column) -> Option<(f64, bool)> {
        let score = self.scores.get(column.name)?;
        Some((*score.figures.get(column.figure)?, score.partial))
    }

    pub(super) fn cell(&self, column: &Column) -> String {
        match self.value(column) {
            Some((value, partial)) => format!("{value:.*}{}", column.decimals, if partial { "*" } else { "" }),
            None => "-".into(),
        }
    }
}

/// All rows as text, published ones first: whether the row is published, the name of the model, the cells.
fn cells(table: &PublishedTable, rows: &[ModelRow]) -> Vec<(bool, String, Vec<String>)> {
    let published = table
        .rows
        .iter()
        .map(|row| (true, format!("{} (published)", row.model), row.cells.iter().map(ToString::to_string).collect()));
    let ours = rows.iter().map(|row| (false, row.model.clone(), table.columns.iter().map(|c| row.cell(c)).collect()));
    published.chain(ours).collect()
}

/// The notes that apply to these rows.
pub(super) fn notes(table: &PublishedTable, rows: &[ModelRow]) -> Vec<&'static str> {
    let has =
        |column: &str| rows.iter().any(|row| row.scores.get(column).is_some_and(|score| !score.figures.is_empty()));
    let mut notes: Vec<&str> =
        table.notes.iter().filter(|note| note.columns.iter().any(|column| has(column))).map(|note| note.text).collect();
    let is_partial = |row: &ModelRow, column| row.value(column).is_some_and(|(_, partial)| partial);
    if rows.iter().any(|row| table.columns.iter().any(|column| is_partial(row, column))) {
        notes.push(table.partial_note);
    }
    notes
}

fn text(table: &PublishedTable, rows: &[ModelRow]) -> String {
    let all = cells(table, rows);
    let width = all.iter().map(|(_, model, _)| model.len()).max().unwrap_or(0);
    let mut text = format!("{DIM}{:<width$}", "model");
    for column in table.columns {
        let _ = write!(text, "  {:>7}", column.title);
    }
    let _ = writeln!(text, "{DIM:#}");
    for (published, model, cells) in &all {
        let style = if *published { DIM } else { GOOD };
        let _ = write!(text, "{style}{model:<width$}{style:#}");
        for cell in cells {
            let _ = write!(text, "  {cell:>7}");
        }
        text.push('\n');
    }
    for note in notes(table, rows) {
        let _ = writeln!(text, "{DIM}{note}{DIM:#}");
    }
    text
}

fn markdown(table: &PublishedTable, rows: &[ModelRow]) -> String {
    let titles: Vec<&str> = table.columns.iter().map(|column| column.title).collect();
    let mut text = format!("| model | {} |\n|---|{}\n", titles.join(" | "), "---:|".repeat(titles.len()));
    for (_, model, cells) in cells(table, rows) {
        let _ = writeln!(text, "| {model} | {} |", cells.join(" | ").replace('*', "\\*"));
    }
    for note in notes(table, rows) {
        let _ = writeln!(text, "\n{}", note.replace('*', "\\*"));
    }
    text
}

/// A table as JSON.
pub(crate) fn published_json(table: &PublishedTable, rows: &[ModelRow]) -> Value {
    let names: Vec<&str> = table.columns.iter().map(|column| column.name).collect();
    let titles: Vec<&str> = table.columns.iter().map(|column| column.title).collect();
    let published = table.rows.iter().map(|row| {
        let values = row.cells.iter().map(|cell| cell.parse::<f64>().ok());
        let figures: BTreeMap<&str, Option<f64>> = names.iter().copied().zip(values).collect();
        json!({"model": row.model, "published": true, "figures": figures})
    });
    let ours = rows.iter().map(|row| {
        let figures: BTreeMap<&str, Option<f64>> =
            table.columns.iter().map(|column| (column.name, row.value(column).map(|(value, _)| value))).collect();
        let partial: Vec<&str> =
            row.scores.iter().filter(|(_, score)| score.partial).map(|(column, _)| *column).collect();
        json!({"model": row.model, "published": false, "figures": figures, table.partial_key: partial})
    });
    json!({"columns": names, "titles": titles, "rows": published.chain(ours).collect::<Vec<_>>(), "notes": notes(table, rows)})
}

#[cfg(test)]
mod tests;
