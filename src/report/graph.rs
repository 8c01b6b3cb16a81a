//! Draws the graph of stages with their states, as text, DOT or Mermaid, and through `svg.rs` as SVG. Independent of how the states
//! are determined.

use std::fmt::Write;

use super::{
    print::print,
    svg::{self, Appearance, Drawn},
};
use crate::{
    pipeline::{Graph, Pipeline},
    scheduler::Verdict,
};

/// The format of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GraphFormat {
    Text,
    Dot,
    Mermaid,
    Svg,
    Json,
}

/// Draws the stages in `verdicts`, which are in execution order.
pub(crate) fn graph(pipeline: &Pipeline, graph: &Graph, verdicts: &[(usize, Verdict)], format: GraphFormat) {
    let stages: Vec<Drawn<'_>> = verdicts
        .iter()
        .map(|(index, verdict)| {
            let stage = &pipeline.stages[*index];
            let mut inputs: Vec<usize> = graph.inputs(*index).collect();
            inputs.sort_unstable();
            Drawn { index: *index, name: &stage.name, kind: stage.kind, appearance: Appearance::of(verdict), inputs }
        })
        .collect();
    let text = match format {
        GraphFormat::Text => text(&stages, pipeline),
        GraphFormat::Dot => dot(&stages, pipeline),
        GraphFormat::Mermaid => mermaid(&stages),
        GraphFormat::Svg => svg::draw(&stages, pipeline.stages.len()),
        GraphFormat::Json => json(&stages, pipeline),
    };
    print(text.trim_end());
}

/// An object a line.
fn json(stages: &[Drawn<'_>], pipeline: &Pipeline) -> String {
    let line = |stage: &Drawn<'_>| {
        let inputs: Vec<&str> = stage.inputs.iter().map(|from| pipeline.stages[*from].name.as_str()).collect();
        let state = stage.appearance.word;
        serde_json::json!({"stage": stage.name, "kind": stage.kind, "state": state, "inputs": inputs}).to_string()
            + "\n"
    };
    stages.iter().map(line).collect()
}

impl Appearance {
    fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Hit { .. } => Self { word: "cached", fill: "#e8f5e9", line: "#43a047" },
            Verdict::Remote { .. } => Self { word: "remote", fill: "#e3f2fd", line: "#1e88e5" },
            Verdict::Run { .. } => Self { word: "run", fill: "#fff3e0", line: "#fb8c00" },
            Verdict::After { .. } => Self { word: "after", fill: "#f5f5f5", line: "#9e9e9e" },
        }
    }
}

fn text(stages: &[Drawn<'_>], pipeline: &Pipeline) -> String {
    let width = |length: fn(&Drawn<'_>) -> usize| stages.iter().map(length).max().unwrap_or(0);
    let (name, kind) = (width(|stage| stage.name.len()), width(|stage| stage.kind.len()));
    let mut text = String::new();
    for stage in stages {
        let inputs: Vec<&str> = stage.inputs.iter().map(|from| pipeline.stages[*from].name.as_str()).collect();
        let arrow = if inputs.is_empty() { String::new() } else { format!("  <- {}", inputs.join(", ")) };
        let line = format!("{:<6}  {:<name$}  {:<kind$}{arrow}", stage.appearance.word, stage.name, stage.kind);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn dot(stages: &[Drawn<'_>], pipeline: &Pipeline) -> String {
    let mut text = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box, style = \"rounded,filled\"];\n",
        pipeline.name
    );
    for Drawn { index, name, kind, appearance, .. } in stages {
        let Appearance { word, fill, line } = appearance;
        let _ = writeln!(
            text,
            "  s{index} [label = \"{name}\\n{kind}, {word}\", fillcolor = \"{fill}\", color = \"{line}\"];"
        );
    }
    for (from, to) in edges(stages) {
        let _ = writeln!(text, "  s{from} -> s{to};");
    }
    text + "}\n"
}

fn mermaid(stages: &[Drawn<'_>]) -> String {
    let mut text = String::from("graph LR\n");
    for Drawn { index, name, kind, appearance, .. } in stages {
        let _ = writeln!(text, "  s{index}[\"{name}<br>{kind}\"]:::{}", appearance.word);
    }
    for (from, to) in edges(stages) {
        let _ = writeln!(text, "  s{from} --> s{to}");
    }
    let mut words: Vec<(&str, &Appearance)> =
        stages.iter().map(|stage| (stage.appearance.word, &stage.appearance)).collect();
    words.sort_unstable_by_key(|(word, _)| *word);
    words.dedup_by_key(|(word, _)| *word);
    for (word, Appearance { fill, line, .. }) in words {
        let _ = writeln!(text, "  classDef {word} fill:{fill},stroke:{line}");
    }
    text
}

/// All edges, from an input to its user.
fn edges<'a>(stages: &'a [Drawn<'_>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    stages.iter().flat_map(|stage| stage.inputs.iter().map(|from| (*from, stage.index)))
}
