//! Merges the points of a sweep into one pipeline, in which a stage that several points share occurs once.
//! Independent of cache keys: two stages are the same if their declarations are equal.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
};

use serde_json::Value as Json;

use super::{
    declaration::{Pipeline, Point, StageDecl},
    diagnostic::{Diagnostic, Diagnostics, Sources},
    graph::Graph,
    sweep::Axis,
    value::{Node, Table},
};

/// The index of a row for each axis.
type Rows = Vec<usize>;

/// All combinations of the axes' rows, the last axis changing fastest.
fn combinations(axes: &[Axis]) -> Vec<Rows> {
    axes.iter().fold(vec![Rows::new()], |rows, axis| {
        rows.iter().flat_map(|row| (0..axis.rows.len()).map(|next| [row.as_slice(), &[next]].concat())).collect()
    })
}

/// One pipeline with all points. `make` turns the table of a point into a pipeline.
pub(super) fn all(
    base: &Table,
    axes: &[Axis],
    sources: &Sources,
    make: impl Fn(Table, &Sources) -> Result<Pipeline, Diagnostics>,
) -> Result<Pipeline, Diagnostics> {
    check_keys(base, axes)?;
    let labels = Labels::new(axes);
    let rows = combinations(axes);
    let mut merged = Merged::default();
    let mut name = String::new();
    for (number, rows) in rows.iter().enumerate() {
        let (mut table, mut values) = (base.clone(), Vec::new());
        for (axis, row) in axes.iter().zip(rows) {
            for (key, node) in axis.keys.iter().zip(&axis.rows[*row]) {
                values.push((key.clone(), node.value.to_string()));
                table.merge(Table::nested(key, node.clone()));
            }
        }
        // Stop at the first point with errors: other points usually have the same.
        let pipeline = make(table, sources)?;
        name.clone_from(&pipeline.name);
        merged.add(number, pipeline)?;
        merged.points.push(Point { label: labels.of(rows), values });
    }
    unique(
        &mut merged.points,
        merged.stages.iter().flat_map(|stage| stage.owners.iter().map(|(_, name)| name.clone())),
    );
    let mut pipeline = Pipeline { name, stages: merged.stages, points: merged.points };
    name_nodes(&mut pipeline, &labels, &rows);
    Ok(pipeline)
}

/// Errors for keys of variables or stages that don't exist: their names are probably misspelt, and setting them would create them.
fn check_keys(base: &Table, axes: &[Axis]) -> Result<(), Diagnostics> {
    let mut problems = Diagnostics::new();
    for axis in axes {
        for (column, key) in axis.keys.iter().enumerate() {
            let span = axis.rows.first().map(|row| row[column].span.clone());
            let mut parts = key.split('.');
            let (of, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let known = base.keys_of(of);
            let problem = match of {
                "seed" if name.is_empty() => continue,
                "vars" | "stages" if known.contains(&name) => continue,
                "vars" => Diagnostic::new(format!("`{key}`: no variable `{name}`"), span).suggest(name, known),
                "stages" => Diagnostic::new(format!("`{key}`: no stage `{name}`"), span).suggest(name, known),
                _ => Diagnostic::new(format!("`{key}` can't be swept over"), span)
                    .help("name a variable (`vars.NAME`), a key of a stage (`stages.NAME.KEY`) or `seed`"),
            };
            problems.push(problem);
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// The labels of each row of each axis.
struct Labels(Vec<Vec<String>>);

impl Labels {
    fn new(axes: &[Axis]) -> Self {
        let all: Vec<&str> = axes.iter().flat_map(|axis| axis.keys.iter().map(String::as_str)).collect();
        Self(axes.iter().map(|axis| Self::of_axis(axis, &all)).collect())
    }

    fn of_axis(axis: &Axis, all: &[&str]) -> Vec<String> {
        if !axis.labels.is_empty() {
            return axis.labels.iter().map(|label| folder_name(label)).collect();
        }
        let label = |row: &Vec<Node>| {
            let pairs = axis.keys.iter().zip(row).map(|(key, node)| {
                let value = node.as_str().map_or_else(|| node.value.to_string(), Into::into);
                format!("{}={}", short_key(key, all), folder_name(&value))
            });
            pairs.collect::<Vec<_>>().join(",")
        };
        axis.rows.iter().map(label).collect()
    }

    /// The label of a point.
    fn of(&self, rows: &[usize]) -> String {
        let parts: Vec<&str> = self.0.iter().zip(rows).map(|(labels, row)| labels[*row].as_str()).collect();
        shortened(parts.join(","))
    }

    /// The label of a stage that some points share: the labels of the axes on which these points agree.
    fn common(&self, points: &[&Rows]) -> String {
        let same = |axis: usize| points.iter().all(|rows| rows[axis] == points[0][axis]);
        let parts: Vec<&str> = (0..self.0.len())
            .filter(|axis| self.0[*axis].len() > 1 && same(*axis))
            .map(|axis| self.0[axis][points[0][axis]].as_str())
            .collect();
        shortened(parts.join(","))
    }
}

/// The last part of a key, or as many of its last parts as make it unique.
fn short_key<'a>(key: &'a str, all: &[&str]) -> &'a str {
    let starts = key.match_indices('.').map(|(at, _)| at + 1).rev();
    let fits =
        |end: &str| all.iter().filter(|other| **other == end || other.ends_with(&format!(".{end}"))).count() == 1;
    starts.map(|start| &key[start..]).find(|end| fits(end)).unwrap_or(key)
}

/// Turns a label into the name of a folder.
fn folder_name(text: &str) -> String {
    let mut clean = String::new();
    for c in text.chars() {
        let c = if c.is_alphanumeric() || "._+=".contains(c) { c } else { '-' };
        if c != '-' || !clean.ends_with('-') {
            clean.push(c);
        }
    }
    match clean.trim_matches(['-', '.']) {
        "" => "other".into(),
        clean => clean.into(),
    }
}

/// Shortens long labels, since file systems limit names to 255 bytes.
fn shortened(label: String) -> String {
    const LONGEST: usize = 120;
    if label.len() <= LONGEST {
        return label;
    }
    let digest = blake3::hash(label.as_bytes()).to_hex();
    format!("{}-{}", &label[..label.floor_char_boundary(LONGEST - 9)], &digest[..8])
}

/// Numbers points with equal labels. Labels must not equal names of stages either, since links to stages are in the same folder as
/// the folders of points.
fn unique(points: &mut [Point], stages: impl Iterator<Item = String>) {
    let mut seen: HashMap<String, usize> = stages.map(|name| (name, 1)).collect();
    for point in points {
        let count = seen.entry(point.label.clone()).or_default();
        *count += 1;
        if *count > 1 {
            point.label = format!("{}-{count}", point.label);
        }
    }
}

/// The stages of all points so far. Equal stages occur once.
#[derive(Default)]
struct Merged {
    stages: Vec<StageDecl>,
    points: Vec<Point>,
    known: HashMap<Identity, usize>,
}

/// Stages of different points with equal identities are merged into one.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    name: String,
    kind: &'static str,
    seed: u64,
    config: Json,
    runtime: Json,
    sources: BTreeMap<String, PathBuf>,
    inputs: BTreeMap<String, usize>,
}

impl Identity {
    fn of(stage: &StageDecl) -> Self {
        Self {
            name: stage.name.clone(),
            kind: stage.kind,
            seed: stage.seed,
            config: stage.config.clone(),
            runtime: serde_json::json!(stage.runtime),
            sources: stage.sources.clone(),
            inputs: stage.inputs.clone(),
        }
    }
}

impl Merged {
    fn add(&mut self, point: usize, pipeline: Pipeline) -> Result<(), Diagnostics> {
        let order = Graph::new(&pipeline).map_err(|cycle| vec![cycle])?.order().to_vec();
        let mut stages: Vec<Option<StageDecl>> = pipeline.stages.into_iter().map(Some).collect();
        let mut nodes = vec![0; stages.len()];
        for index in order {
            let Some(mut stage) = stages[index].take() else { continue };
            for input in stage.inputs.values_mut() {
                *input = nodes[*input];
            }
            let node = *self.known.entry(Identity::of(&stage)).or_insert(self.stages.len());
            let owner = (point, stage.name.clone());
            if let Some(known) = self.stages.get_mut(node) {
                known.owners.push(owner);
            } else {
                stage.owners = vec![owner];
                self.stages.push(stage);
            }
            nodes[index] = node;
        }
        Ok(())
    }
}

/// Names the stages that only some points have after these points: `finetune@lora_rank=64`.
fn name_nodes(pipeline: &mut Pipeline, labels: &Labels, rows: &[Rows]) {
    let mut taken = BTreeSet::new();
    for stage in &mut pipeline.stages {
        let owners: Vec<&Rows> = stage.owners.iter().map(|(point, _)| &rows[*point]).collect();
        let common = if owners.len() == rows.len() { String::new() } else { labels.common(&owners) };
        let full = |label: &str| {
            if label.is_empty() { stage.owners[0].1.clone() } else { format!("{}@{label}", stage.owners[0].1) }
        };
        let candidates = [full(&common), full(&pipeline.points[stage.owners[0].0].label)];
        let free = candidates.iter().find(|name| !taken.contains(*name));
        stage.name.clone_from(free.unwrap_or(&candidates[1]));
        taken.insert(stage.name.clone());
    }
}
