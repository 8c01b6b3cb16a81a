//! The table of the Imp paper: nine benchmarks, this run's models beside the published ones. Does not know where figures
//! come from.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};

use super::{
    print::{say, tell},
    style::{DIM, GOOD, Style},
};

/// A column: the benchmark as `eval` names it, the figure of `eval` that stands there and what it is multiplied by, and how
/// the paper writes it.
struct Column {
    benchmark: &'static str,
    figure: &'static str,
    scale: f64,
    title: &'static str,
    decimals: usize,
}

const fn column(benchmark: &'static str, figure: &'static str, title: &'static str) -> Column {
    Column { benchmark, figure, scale: 1.0, title, decimals: 2 }
}

const COLUMNS: [Column; 9] = [
    column("vqav2", "accuracy", "VQAv2"),
    column("gqa", "accuracy", "GQA"),
    column("vizwiz", "accuracy", "VizWiz"),
    column("scienceqa", "img_accuracy", "SQA-IMG"),
    column("textvqa", "accuracy", "TextVQA"),
    Column { scale: 100.0, ..column("pope", "f1", "POPE") },
    Column { decimals: 1, ..column("mme", "perception", "MME-P") },
    column("mmbench", "circular", "MMB"),
    Column { decimals: 1, ..column("mmvet", "total", "MM-Vet") },
];

/// What the paper and LLaVA report (arXiv 2405.12107 and the README of MILVLG/imp).
const PUBLISHED: [(&str, [&str; 9]); 5] = [
    ("LLaVA-1.5-lora-7B", ["79.10", "63.00", "47.80", "68.40", "58.20", "86.40", "1476.9", "66.10", "30.2"]),
    ("Imp-v1-3B", ["79.45", "58.55", "50.09", "69.96", "59.38", "88.02", "1434.0", "66.49", "33.1"]),
    ("Imp-v1.5-2B", ["79.2", "61.93", "39.16", "66.14", "54.52", "86.74", "1304.8", "56.95", "33.5"]),
    ("Imp-v1.5-3B", ["81.18", "63.54", "54.13", "72.78", "59.84", "88.87", "1446.4", "72.94", "43.3"]),
    ("Imp-v1.5-4B", ["81.46", "63.51", "51.16", "78.28", "60.16", "86.86", "1507.7", "73.28", "44.6"]),
];

/// For figures of a part of a benchmark's questions.
const PART: &str = "* on the first questions only (`limit`)";
/// Always true of a model of this run, where it has these figures.
const SPLITS: &str =
    "VQAv2 and VizWiz: this run's on the public validation splits, the published ones on the test servers' splits";

/// A model of this run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EvalRow {
    pub(crate) model: String,
    /// By benchmark.
    pub(crate) scores: BTreeMap<String, Score>,
}

/// What an eval stage found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    /// Its figures by name.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Not all questions were asked.
    pub(crate) part: bool,
}

/// How the table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Markdown,
    Json,
}

/// Whether the benchmarks are all of the table's.
pub(crate) fn is_whole<'a>(benchmarks: impl Iterator<Item = &'a str>) -> bool {
    let given: Vec<&str> = benchmarks.collect();
    COLUMNS.iter().all(|column| given.contains(&column.benchmark))
}

/// Writes the table.
pub(crate) fn eval(rows: &[EvalRow], format: Format) {
    say(match format {
        Format::Text => text(rows),
        Format::Markdown => markdown(rows),
        Format::Json => json(rows).to_string(),
    }
    .trim_end());
}

/// A pipeline of which nothing is in the cache.
pub(crate) fn no_eval(pipeline: &str, file: &str, style: Style) {
    if !style.quiet {
        tell(&format!("{pipeline} has no figures in the cache: `imp-flow run {file}` makes them"));
    }
}

impl EvalRow {
    fn value(&self, column: &Column) -> Option<(f64, bool)> {
        let score = self.scores.get(column.benchmark)?;
        Some((score.figures.get(column.figure)? * column.scale, score.part))
    }

    fn cell(&self, column: &Column) -> String {
        match self.value(column) {
            Some((value, part)) => format!("{value:.*}{}", column.decimals, if part { "*" } else { "" }),
            None => "-".into(),
        }
    }
}

/// All rows as texts, published ones first: whether it is published, its name, its cells.
fn cells(rows: &[EvalRow]) -> Vec<(bool, String, Vec<String>)> {
    let published =
        PUBLISHED.iter().map(|(model, cells)| (true, format!("{model} (published)"), cells.map(String::from).to_vec()));
    let ours = rows.iter().map(|row| (false, row.model.clone(), COLUMNS.iter().map(|c| row.cell(c)).collect()));
    published.chain(ours).collect()
}

fn notes(rows: &[EvalRow]) -> Vec<&'static str> {
    let has = |row: &EvalRow, benchmark: &str| row.scores.get(benchmark).is_some_and(|score| !score.figures.is_empty());
    let splits = rows.iter().any(|row| has(row, "vqav2") || has(row, "vizwiz"));
    let part = rows.iter().any(|row| COLUMNS.iter().any(|column| row.value(column).is_some_and(|(_, part)| part)));
    [(splits, SPLITS), (part, PART)].into_iter().filter(|(holds, _)| *holds).map(|(_, note)| note).collect()
}

fn text(rows: &[EvalRow]) -> String {
    let all = cells(rows);
    let width = all.iter().map(|(_, model, _)| model.len()).max().unwrap_or(0);
    let mut text = format!("{DIM}{:<width$}", "model");
    for column in &COLUMNS {
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
    for note in notes(rows) {
        let _ = writeln!(text, "{DIM}{note}{DIM:#}");
    }
    text
}

fn markdown(rows: &[EvalRow]) -> String {
    let titles: Vec<&str> = COLUMNS.iter().map(|column| column.title).collect();
    let mut text = format!("| model | {} |\n|---|{}\n", titles.join(" | "), "---:|".repeat(titles.len()));
    for (_, model, cells) in cells(rows) {
        let _ = writeln!(text, "| {model} | {} |", cells.join(" | ").replace('*', "\\*"));
    }
    for note in notes(rows) {
        let _ = writeln!(text, "\n{}", note.replace('*', "\\*"));
    }
    text
}

fn json(rows: &[EvalRow]) -> Value {
    let titles: Vec<&str> = COLUMNS.iter().map(|column| column.benchmark).collect();
    let published = PUBLISHED.iter().map(|(model, cells)| {
        let values = cells.iter().map(|cell| cell.parse::<f64>().ok());
        let figures: BTreeMap<&str, Option<f64>> = titles.iter().copied().zip(values).collect();
        json!({"model": model, "published": true, "figures": figures})
    });
    let ours = rows.iter().map(|row| {
        let figures: BTreeMap<&str, Option<f64>> =
            COLUMNS.iter().map(|column| (column.benchmark, row.value(column).map(|(value, _)| value))).collect();
        let parts: Vec<&str> =
            row.scores.iter().filter(|(_, score)| score.part).map(|(benchmark, _)| benchmark.as_str()).collect();
        json!({"model": row.model, "published": false, "figures": figures, "on_first_questions_only": parts})
    });
    json!({"columns": titles, "rows": published.chain(ours).collect::<Vec<_>>(), "notes": notes(rows)})
}

#[cfg(test)]
mod tests;
