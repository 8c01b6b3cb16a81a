//! Compares the printed table with stored files: text, Markdown and JSON.

#![allow(clippy::unwrap_used)]

use super::*;

fn table() -> &'static PublishedTable {
    imp_stages::kinds::tables().next().unwrap()
}

/// Two models: one with every kind of cell, one with a figure that the table does not show.
fn rows() -> Vec<ModelRow> {
    let score = |figures: &[(&str, f64)], partial: bool| Score {
        figures: figures.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
        partial,
    };
    let row = |model: &str, scores: Vec<(&'static str, Score)>| ModelRow {
        model: model.into(),
        scores: scores.into_iter().collect(),
    };
    vec![
        row(
            "tiny/merge",
            vec![
                ("vqav2", score(&[("accuracy", 81.176), ("yes_no", 90.0)], false)),
                ("pope", score(&[("f1", 88.666), ("accuracy", 90.0)], true)),
                ("mme", score(&[("perception", 1446.44), ("cognition", 300.0)], false)),
                ("mmvet", score(&[("rec", 50.0)], false)),
                ("custom", score(&[("accuracy", 66.67)], true)),
            ],
        ),
        row("tiny/quantize", vec![("scienceqa", score(&[("accuracy", 70.0), ("img_accuracy", 72.784)], false))]),
    ]
}

/// Replaces styles by words.
fn plain(text: &str) -> String {
    text.replace(&format!("{DIM}"), "<dim>").replace(&format!("{GOOD}"), "<good>").replace(&format!("{DIM:#}"), "</>")
}

#[test]
fn text_is_aligned_and_explains_its_stars() {
    assert_eq!(&plain(&text(table(), &rows())), include_str!("tests/table.txt"));
}

#[test]
fn markdown_escapes_its_stars() {
    assert_eq!(&markdown(table(), &rows()), include_str!("tests/table.md"));
}

#[test]
fn json_has_the_figures_unrounded() {
    assert_eq!(&format!("{}\n", published_json(table(), &rows())), include_str!("tests/table.json"));
}
