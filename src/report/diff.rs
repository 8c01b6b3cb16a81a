//! The output of `imp-flow diff`: what differs between two runs, in words.

use super::{
    foreign::one_line,
    print::print,
    style::{BAD, DIM, GOOD},
    units,
};
use crate::{
    store::RunRecord,
    view::{ChangesView, FigureChange, ParameterChange},
};

/// Two runs, and what differs.
pub(crate) struct Differences<'a> {
    pub(crate) old: &'a RunRecord,
    pub(crate) new: &'a RunRecord,
    /// What they were started with.
    pub(crate) started: Vec<ParameterChange>,
    /// Versions of kinds and devices, by stage.
    pub(crate) kinds: Vec<ParameterChange>,
    pub(crate) changes: ChangesView,
}

/// Shows the differences.
pub(crate) fn diff(differences: &Differences<'_>, json: bool) {
    if json {
        return print(&as_json(differences).to_string());
    }
    print(&text(differences));
}

fn as_json(differences: &Differences<'_>) -> serde_json::Value {
    let Differences { old, new, started, kinds, changes } = differences;
    let run = |run: &RunRecord| {
        let RunRecord { id, name, pipeline, started, ending, .. } = run;
        serde_json::json!({"id": id, "name": name, "pipeline": pipeline, "started": started, "state": ending})
    };
    serde_json::json!({"old": run(old), "new": run(new), "started_with": started, "versions": kinds, "changes": changes})
}

fn text(differences: &Differences<'_>) -> String {
    let Differences { old, new, started, kinds, changes } = differences;
    let ChangesView { parameters, contents, added, removed, figures, .. } = changes;
    let mut lines =
        vec![format!("{DIM}from{DIM:#} {}", described(old)), format!("{DIM}to{DIM:#}   {}", described(new))];
    let mut part = |title: &str, rows: Vec<String>| {
        if !rows.is_empty() {
            lines.push(format!("\n{title}"));
            lines.extend(rows.into_iter().map(|row| format!("  {row}")));
        }
    };
    part("started with", started.iter().map(pair).collect());
    part("parameters", parameters.iter().map(pair).collect());
    part("versions and devices", kinds.iter().map(pair).collect());
    part("stages that are new", names(added));
    part("stages that are gone", names(removed));
    part("stages with another content", names(contents));
    part("results", figures.iter().map(figure).collect());
    if lines.len() == 2 {
        lines.push("\nNothing differs but the times.".into());
    }
    lines.join("\n")
}

/// `20261125-0042-3fa1b2 (paper), 2026-11-25 00:42, done`.
fn described(run: &RunRecord) -> String {
    let name = run.name.as_ref().map(|name| format!(" ({})", one_line(name))).unwrap_or_default();
    format!("{}{name}, {}, {}", run.id, units::time(run.started as u64), run.ending)
}

fn names(names: &[String]) -> Vec<String> {
    names.iter().map(|name| one_line(name)).collect()
}

fn pair(change: &ParameterChange) -> String {
    let value = |value: &Option<String>| value.as_deref().map_or_else(|| "(none)".into(), one_line);
    format!("{}  {} -> {}", one_line(&change.key), value(&change.old), value(&change.new))
}

/// `pope.accuracy  92.8 % -> 93.1 %  +0.3125, better`.
fn figure(change: &FigureChange) -> String {
    let FigureChange { stage, old, new } = change;
    let unit = if new.unit.is_empty() { String::new() } else { format!(" {}", new.unit) };
    let moved = new.value - old;
    let verdict = match new.better {
        "higher" | "lower" if (new.better == "higher") == (moved > 0.0) => format!(", {GOOD}better{GOOD:#}"),
        "higher" | "lower" => format!(", {BAD}worse{BAD:#}"),
        _ => String::new(),
    };
    let (stage, name) = (one_line(stage), one_line(&new.name));
    format!("{stage}.{name}  {}{unit} -> {}{unit}  {moved:+.4}{verdict}", units::figure(*old), units::figure(new.value))
}
