//! The DAG as text, DOT, Mermaid or SVG, with where each stage stands. Knows verdicts; not how they came about.

use std::fmt::Write;

use super::say;
use crate::{cli::GraphFormat, graph::Graph, pipeline::Pipeline, scheduler::Verdict};

/// Draws the stages in `verdicts`, which are in the order of execution.
pub(crate) fn graph(pipeline: &Pipeline, graph: &Graph, verdicts: &[(usize, Verdict)], format: GraphFormat) {
    let stages: Vec<Drawn<'_>> = verdicts
        .iter()
        .map(|(index, verdict)| {
            let stage = &pipeline.stages[*index];
            let mut inputs: Vec<usize> = graph.inputs(*index).collect();
            inputs.sort_unstable();
            Drawn { index: *index, name: &stage.name, kind: stage.kind, look: Look::of(verdict), inputs }
        })
        .collect();
    let text = match format {
        GraphFormat::Text => text(&stages, pipeline),
        GraphFormat::Dot => dot(&stages, pipeline),
        GraphFormat::Mermaid => mermaid(&stages),
        GraphFormat::Svg => svg(&stages, pipeline),
    };
    say(text.trim_end());
}

struct Drawn<'a> {
    index: usize,
    name: &'a str,
    kind: &'static str,
    look: Look,
    inputs: Vec<usize>,
}

/// How a verdict looks.
struct Look {
    word: &'static str,
    fill: &'static str,
    line: &'static str,
}

impl Look {
    fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Hit { .. } => Self { word: "cached", fill: "#e8f5e9", line: "#43a047" },
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
        let line = format!("{:<6}  {:<name$}  {:<kind$}{arrow}", stage.look.word, stage.name, stage.kind);
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn dot(stages: &[Drawn<'_>], pipeline: &Pipeline) -> String {
    let mut text = format!(
        "digraph \"{}\" {{\n  rankdir = LR;\n  node [shape = box, style = \"rounded,filled\"];\n",
        pipeline.name
    );
    for Drawn { index, name, kind, look, .. } in stages {
        let Look { word, fill, line } = look;
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
    for Drawn { index, name, kind, look, .. } in stages {
        let _ = writeln!(text, "  s{index}[\"{name}<br>{kind}\"]:::{}", look.word);
    }
    for (from, to) in edges(stages) {
        let _ = writeln!(text, "  s{from} --> s{to}");
    }
    let mut words: Vec<(&str, &Look)> = stages.iter().map(|stage| (stage.look.word, &stage.look)).collect();
    words.sort_unstable_by_key(|(word, _)| *word);
    words.dedup_by_key(|(word, _)| *word);
    for (word, Look { fill, line, .. }) in words {
        let _ = writeln!(text, "  classDef {word} fill:{fill},stroke:{line}");
    }
    text
}

fn edges<'a>(stages: &'a [Drawn<'_>]) -> impl Iterator<Item = (usize, usize)> + 'a {
    stages.iter().flat_map(|stage| stage.inputs.iter().map(|from| (*from, stage.index)))
}

const BOX: (usize, usize) = (170, 40);
const GAP: (usize, usize) = (60, 16);

/// Columns by depth, edges as curves between them.
fn svg(stages: &[Drawn<'_>], pipeline: &Pipeline) -> String {
    let count = pipeline.stages.len();
    let (mut column, mut row) = (vec![0; count], vec![0; count]);
    let mut heights: Vec<usize> = Vec::new();
    // Each stage comes after its inputs.
    for stage in stages {
        let depth = stage.inputs.iter().map(|from| column[*from] + 1).max().unwrap_or(0);
        heights.resize(heights.len().max(depth + 1), 0);
        (column[stage.index], row[stage.index]) = (depth, heights[depth]);
        heights[depth] += 1;
    }
    let tallest = heights.iter().max().copied().unwrap_or(0);
    let x = |index: usize| GAP.1 + column[index] * (BOX.0 + GAP.0);
    // Short columns stand in the middle.
    let y = |index: usize| {
        let free = (tallest - heights[column[index]]) * (BOX.1 + GAP.1) / 2;
        GAP.1 + free + row[index] * (BOX.1 + GAP.1)
    };
    let (width, height) = (
        GAP.1 * 2 + heights.len() * (BOX.0 + GAP.0) - GAP.0.min(heights.len() * GAP.0),
        GAP.1 + tallest * (BOX.1 + GAP.1),
    );
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    for (from, to) in edges(stages) {
        let (x1, y1, x2, y2) = (x(from) + BOX.0, y(from) + BOX.1 / 2, x(to), y(to) + BOX.1 / 2);
        let middle = usize::midpoint(x1, x2);
        let _ = writeln!(
            text,
            "<path d=\"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}\" fill=\"none\" stroke=\"#9e9e9e\"/>"
        );
    }
    for Drawn { index, name, kind, look, .. } in stages {
        let Look { word, fill, line } = look;
        let (x, y) = (x(*index), y(*index));
        let _ = writeln!(
            text,
            "<g><title>{name}: {kind}, {word}</title><rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" rx=\"6\" \
             fill=\"{fill}\" stroke=\"{line}\"/><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>\
             <text x=\"{}\" y=\"{}\" text-anchor=\"middle\" font-size=\"10\" fill=\"#757575\">{kind}, {word}</text></g>",
            BOX.0,
            BOX.1,
            x + BOX.0 / 2,
            y + 17,
            clipped(name),
            x + BOX.0 / 2,
            y + 31,
        );
    }
    text + "</svg>\n"
}

/// Names that are too long for a box.
fn clipped(name: &str) -> String {
    const LONGEST: usize = 26;
    if name.chars().count() <= LONGEST {
        name.into()
    } else {
        name.chars().take(LONGEST - 1).collect::<String>() + "…"
    }
}
