//! The output of `imp-flow show --answers`.

use super::{
    foreign::{indented, one_line},
    print::print,
    style::{BAD, DIM, GOOD},
};
use crate::view::AnswerRow;

/// Which answers to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnswerFilter<'a> {
    pub(crate) only_wrong: bool,
    pub(crate) category: Option<&'a str>,
}

/// Shows answers, and how many are right.
pub(crate) fn answers(rows: &[AnswerRow], filter: AnswerFilter<'_>, json: bool) {
    let is_shown = |row: &&AnswerRow| {
        (!filter.only_wrong || row.is_right() == Some(false))
            && filter.category.is_none_or(|category| row.category == category)
    };
    let shown: Vec<&AnswerRow> = rows.iter().filter(is_shown).collect();
    for row in &shown {
        print(&if json { line(row) } else { block(row) });
    }
    if !json {
        print(&summary(rows, shown.len()));
    }
}

fn line(row: &AnswerRow) -> String {
    serde_json::json!({
        "question_id": row.id, "question": row.question, "answer": row.answer, "truth": row.truth, "score": row.score,
        "category": row.category, "image": row.image_file,
    })
    .to_string()
}

/// Verdict, id, category and image on one line, then question and answer.
fn block(row: &AnswerRow) -> String {
    let (style, verdict) = match row.is_right() {
        Some(true) => (GOOD, "right"),
        Some(false) => (BAD, "wrong"),
        None => (DIM, "not scored"),
    };
    let partly = row.score.filter(|score| *score > 0.0 && *score < 1.0).map(|score| format!(" (score {score:.2})"));
    let about = [row.id.as_str(), row.category.as_str(), row.image_file.as_deref().unwrap_or_default()];
    let about: Vec<String> = about.iter().filter(|text| !text.is_empty()).map(|text| one_line(text)).collect();
    let truth = match row.truth.as_slice() {
        [] => String::new(),
        truth => format!("\n  {DIM}truth   {DIM:#} {}", one_line(&truth.join(" | "))),
    };
    format!(
        "{style}{verdict}{style:#}{}  {DIM}{}{DIM:#}\n  {DIM}question{DIM:#} {}\n  {DIM}answer  {DIM:#} {}{truth}\n",
        partly.unwrap_or_default(),
        about.join("  "),
        indented(row.question.trim_end(), "           "),
        indented(row.answer.trim_end(), "           "),
    )
}

fn summary(rows: &[AnswerRow], shown: usize) -> String {
    let count = |is: Option<bool>| rows.iter().filter(|row| row.is_right() == is).count();
    let (right, wrong, open) = (count(Some(true)), count(Some(false)), count(None));
    let open = if open > 0 { format!(", {open} not scored") } else { String::new() };
    format!("{} answers: {right} right, {wrong} wrong{open}; {shown} shown", rows.len())
}
