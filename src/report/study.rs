//! Shows the studies of a publication, each beside what was measured here. Independent of where results come from.

use std::{collections::BTreeMap, fmt::Write};

use imp_stages::contract::published::{PublishedTable, Study, StudyRow};
use serde_json::{Value, json};

use super::{
    print::print,
    published::{Format, ModelRow, notes},
    style::{DIM, GOOD},
    table::Table,
};

/// A setting in a study: a published one, a point of the user's sweep, or both.
#[derive(Debug)]
pub(crate) struct StudyPoint {
    /// Its label.
    pub(crate) name: String,
    /// What was measured here, by model.
    pub(crate) measured: Vec<ModelRow>,
}

/// A study and its points.
pub(crate) type ShownStudy<'a> = (&'a PublishedTable, &'a Study, Vec<StudyPoint>);

/// Where the figures of a line come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Published,
    Measured,
    NotRun,
}

impl Source {
    fn words(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Measured => "measured here",
            Self::NotRun => "not run",
        }
    }
}

/// A line of a study: a setting, where its figures come from, the model if it is not the point's only one, and the cells.
struct Line {
    point: String,
    source: Source,
    model: Option<String>,
    cells: Vec<String>,
    figures: BTreeMap<&'static str, Option<f64>>,
    mean: Option<f64>,
}

/// Prints all studies.
pub(crate) fn studies(all: &[ShownStudy<'_>], format: Format) {
    match format {
        Format::Json => print(&json!({ "studies": all.iter().map(study_json).collect::<Vec<_>>() }).to_string()),
        Format::Markdown => print(all.iter().map(markdown).collect::<Vec<_>>().join("\n").trim_end()),
        Format::Text => {
            for study in all {
                print_text(study);
            }
        }
    }
}

fn lines((table, study, points): &ShownStudy<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    for point in points {
        let has_figures = |row: &&StudyRow| row.mean.is_some() || !row.cells.is_empty();
        if let Some(row) = study.rows.iter().filter(has_figures).find(|row| row.point == point.name) {
            lines.push(published_line(table, row));
        }
        let several = point.measured.len() > 1;
        lines.extend(point.measured.iter().map(|row| measured_line(table, &point.name, row, several)));
        if point.measured.is_empty() {
            let cells = vec!["-".to_string(); table.columns.len() + 1];
            let point = point.name.clone();
            lines.push(Line {
                point,
                source: Source::NotRun,
                model: None,
                cells,
                figures: BTreeMap::new(),
                mean: None,
            });
        }
    }
    lines
}

fn published_line(table: &PublishedTable, row: &StudyRow) -> Line {
    let cell = |name: &str| row.cells.iter().find(|(column, _)| *column == name).map(|(_, cell)| *cell);
    let cells = table.columns.iter().map(|column| cell(column.name)).chain([row.mean]);
    Line {
        point: row.point.into(),
        source: Source::Published,
        model: None,
        cells: cells.map(|cell| cell.unwrap_or("-").into()).collect(),
        figures: table
            .columns
            .iter()
            .map(|column| (column.name, cell(column.name).and_then(|cell| cell.parse().ok())))
            .collect(),
        mean: row.mean.and_then(|mean| mean.parse().ok()),
    }
}

fn measured_line(table: &PublishedTable, point: &str, row: &ModelRow, several: bool) -> Line {
    let value = |name: &str| {
        let column = table.columns.iter().find(|column| column.name == name)?;
        row.value(column).map(|(value, _)| value)
    };
    let averaged: Option<Vec<f64>> = table.mean_of.iter().map(|name| value(name)).collect();
    let mean =
        averaged.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<f64>() / values.len() as f64);
    let cells = table.columns.iter().map(|column| row.cell(column));
    Line {
        point: point.into(),
        source: Source::Measured,
        model: several.then(|| row.model.clone()),
        cells: cells.chain([mean.map_or("-".into(), |mean| format!("{mean:.1}"))]).collect(),
        figures: table.columns.iter().map(|column| (column.name, value(column.name))).collect(),
        mean,
    }
}

/// What must be said below a study.
fn remarks((table, study, points): &ShownStudy<'_>) -> Vec<String> {
    let titles: Vec<&str> =
        table.columns.iter().filter(|column| table.mean_of.contains(&column.name)).map(|column| column.title).collect();
    let measured: Vec<ModelRow> = points.iter().flat_map(|point| point.measured.iter().cloned()).collect();
    let of_study = study.notes.iter().map(ToString::to_string);
    let of_table = notes(table, &measured).into_iter().map(Into::into);
    [format!("mean: of {}", titles.join(", "))].into_iter().chain(of_study).chain(of_table).collect()
}

fn head(table: &PublishedTable) -> Vec<&'static str> {
    let titles = table.columns.iter().map(|column| column.title);
    ["setting", "figures"].into_iter().chain(titles).chain(["mean"]).collect()
}

fn source(line: &Line) -> String {
    line.model.as_ref().map_or_else(|| line.source.words().into(), |model| format!("{}: {model}", line.source.words()))
}

fn print_text(shown: &ShownStudy<'_>) {
    let (table, study, _) = shown;
    print(&format!("{GOOD}{}{GOOD:#} ({}, {})", study.title, study.sweep, study.file));
    let head = head(table);
    let mut rows = Table::new(&head).right(&head[2..]);
    for line in lines(shown) {
        rows.row([line.point.clone(), source(&line)].into_iter().chain(line.cells));
    }
    rows.print();
    for remark in remarks(shown) {
        print(&format!("{DIM}{remark}{DIM:#}"));
    }
    print("");
}

fn markdown(shown: &ShownStudy<'_>) -> String {
    let (table, study, _) = shown;
    let head = head(table);
    let mut text = format!("## {} (`{}`)\n\n| {} |\n", study.title, study.file, head.join(" | "));
    let _ = writeln!(text, "|---|---|{}", "---:|".repeat(head.len() - 2));
    for line in lines(shown) {
        let cells = line.cells.join(" | ").replace('*', "\\*");
        let _ = writeln!(text, "| {} | {} | {cells} |", line.point, source(&line));
    }
    for remark in remarks(shown) {
        let _ = writeln!(text, "\n{}", remark.replace('*', "\\*"));
    }
    text
}

fn study_json(shown: &ShownStudy<'_>) -> Value {
    let (table, study, _) = shown;
    let row = |line: Line| {
        json!({
            "setting": line.point,
            "source": line.source.words(),
            "model": line.model,
            "figures": line.figures,
            "mean": line.mean,
        })
    };
    json!({
        "study": study.title,
        "sweep": study.sweep,
        "file": study.file,
        "columns": table.columns.iter().map(|column| column.name).collect::<Vec<_>>(),
        "mean_of": table.mean_of,
        "rows": lines(shown).into_iter().map(row).collect::<Vec<_>>(),
        "notes": remarks(shown),
    })
}
