//! Reads `[sweep]`: which keys take which values. Independent of what the keys mean.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    diagnostic::{Diagnostic, Diagnostics},
    read::scalar,
    value::{Entry, Node, Table, Value},
};

/// Keys that change together. The points of a sweep are all combinations of the rows of its axes.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Dotted keys.
    pub(super) keys: Vec<String>,
    /// Each row has a value for each key.
    pub(super) rows: Vec<Vec<Node>>,
    /// A label for each row, if the user gave any.
    pub(super) labels: Vec<String>,
}

/// The most points that a sweep may have.
const MOST_POINTS: usize = 100_000;

/// The axes that `[sweep]` describes.
pub(super) fn axes(sweep: Node) -> Result<Vec<Axis>, Diagnostics> {
    let Value::Table(mut table) = sweep.value else {
        return Err(vec![Diagnostic::new("`sweep` must be a table", Some(sweep.span)).help(HELP)]);
    };
    let (mut axes, mut problems) = (Vec::new(), Diagnostics::new());
    let zip = table.remove("zip");
    let random = table.remove("random");
    for (key, node) in table.flat(is_distribution) {
        match node.value {
            Value::Array(values) if !values.is_empty() => {
                // Skip repeated values, which would give the same point twice.
                let mut seen = HashSet::new();
                let rows = values.into_iter().filter(|value| seen.insert(value.value.to_string()));
                axes.push(Axis { keys: vec![key], rows: rows.map(|value| vec![value]).collect(), labels: Vec::new() });
            }
            _ => problems.push(no_values(&key, &node)),
        }
    }
    match zip.map(|entry| entry.node) {
        Some(Node { value: Value::Array(groups), .. }) => {
            for group in groups {
                push(&mut axes, &mut problems, zipped(group));
            }
        }
        Some(group) => push(&mut axes, &mut problems, zipped(group)),
        None => {}
    }
    if let Some(entry) = random {
        push(&mut axes, &mut problems, drawn(entry));
    }
    axes.retain(|axis| !axis.keys.is_empty());
    let mut keys = HashSet::new();
    for key in axes.iter().flat_map(|axis| &axis.keys).filter(|key| !keys.insert(key.as_str())) {
        problems.push(Diagnostic::new(format!("`{key}` is swept over twice"), Some(sweep.span.clone())));
    }
    if problems.is_empty() && axes.is_empty() {
        problems.push(Diagnostic::new("there is nothing to sweep over", Some(sweep.span.clone())).help(HELP));
    }
    let count = axes.iter().try_fold(1_usize, |count, axis| count.checked_mul(axis.rows.len()));
    if problems.is_empty() && count.is_none_or(|count| count > MOST_POINTS) {
        problems.push(Diagnostic::new(format!("this sweep has more than {MOST_POINTS} points"), Some(sweep.span)));
    }
    if problems.is_empty() { Ok(axes) } else { Err(problems) }
}

/// Removes `key` from the `[sweep]` of a pipeline.
pub(super) fn forget(pipeline: &mut Table, key: &str) {
    let Some(Entry { node: Node { value: Value::Table(sweep), .. }, .. }) = pipeline.get_mut("sweep") else { return };
    let mut kept = ["zip", "random"].map(|name| sweep.remove(name));
    for entry in kept.iter_mut().flatten() {
        match &mut entry.node.value {
            Value::Array(groups) => groups.iter_mut().for_each(|group| forget_in(group, key)),
            _ => forget_in(&mut entry.node, key),
        }
    }
    without(sweep, key);
    sweep.0.extend(kept.into_iter().flatten());
}

fn forget_in(group: &mut Node, key: &str) {
    if let Value::Table(table) = &mut group.value {
        without(table, key);
    }
}

/// Flattens a table and removes a dotted key from it.
fn without(table: &mut Table, key: &str) {
    let entry = |(name, node): (String, Node)| Entry { key: name, key_span: node.span.clone(), node };
    let flat = std::mem::take(table).flat(is_distribution);
    table.0 = flat.into_iter().filter(|(name, _)| name != key).map(entry).collect();
}

/// Adds `key` to the `[sweep]` of a pipeline. Creates the table if there is none.
pub(super) fn add(pipeline: &mut Table, key: &str, values: Node) {
    let span = values.span.clone();
    let entry = Entry { key: key.into(), key_span: span.clone(), node: values };
    let table = Value::Table(Table(vec![entry]));
    pipeline.merge(Table(vec![Entry {
        key: "sweep".into(),
        key_span: span.clone(),
        node: Node { value: table, span },
    }]));
}

const HELP: &str = "give each key its values, as in `\"vars.lora_rank\" = [64, 128]`";

fn push(axes: &mut Vec<Axis>, problems: &mut Diagnostics, axis: Result<Axis, Diagnostics>) {
    match axis {
        Ok(axis) => axes.push(axis),
        Err(found) => problems.extend(found),
    }
}

/// The error for a key without a list of values.
fn no_values(key: &str, node: &Node) -> Diagnostic {
    Diagnostic::new(format!("`{key}` needs a list of values"), Some(node.span.clone()))
        .label(format!("this is {}", if matches!(node.value, Value::Array(_)) { "empty" } else { node.type_name() }))
        .help(HELP)
}

/// The axis of a `[[sweep.zip]]`: its keys take their first values together, then their second values, and so on.
fn zipped(group: Node) -> Result<Axis, Diagnostics> {
    let Value::Table(mut table) = group.value else {
        return Err(vec![Diagnostic::new("`zip` must be a table", Some(group.span)).help(HELP)]);
    };
    let labels: Vec<String> = match table.remove("label") {
        Some(entry) => super::de::from_node(&entry.node).map_err(|problem| vec![problem])?,
        None => Vec::new(),
    };
    let mut axis = Axis { keys: Vec::new(), rows: Vec::new(), labels };
    for (key, node) in table.flat(is_distribution) {
        let span = node.span.clone();
        let Value::Array(values) = node.value else { return Err(vec![no_values(&key, &node)]) };
        if axis.keys.is_empty() {
            axis.rows.resize(values.len(), Vec::new());
        }
        if values.len() != axis.rows.len() || values.is_empty() {
            let (count, first) = (values.len(), axis.rows.len());
            let message = format!("`{key}` has {count} value(s), but the keys before it in this `zip` have {first}");
            return Err(vec![
                Diagnostic::new(message, Some(span)).help("give every key in a `zip` the same number of values"),
            ]);
        }
        axis.keys.push(key);
        axis.rows.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
    }
    if !axis.keys.is_empty() && !axis.labels.is_empty() && axis.labels.len() != axis.rows.len() {
        let message = format!("`label` has {} names for {} points", axis.labels.len(), axis.rows.len());
        return Err(vec![Diagnostic::new(message, Some(group.span))]);
    }
    Ok(axis)
}

const DISTRIBUTIONS: [&str; 4] = ["uniform", "log_uniform", "integer", "choice"];

fn is_distribution(table: &Table) -> bool {
    matches!(table.0.as_slice(), [only] if DISTRIBUTIONS.contains(&only.key.as_str()))
}

/// The axis of `[sweep.random]`: `count` rows with values drawn at random.
fn drawn(entry: Entry) -> Result<Axis, Diagnostics> {
    let Value::Table(mut table) = entry.node.value else {
        return Err(vec![Diagnostic::new("`sweep.random` must be a table", Some(entry.node.span))]);
    };
    let mut problems = Diagnostics::new();
    let count: usize = scalar(&mut table, "count", 0, &mut problems);
    let seed: u64 = scalar(&mut table, "seed", 0, &mut problems);
    if problems.is_empty() && !(1..=MOST_POINTS).contains(&count) {
        problems.push(
            Diagnostic::new("`sweep.random` needs a `count` of points", Some(entry.key_span))
                .help("add `count = 20`; a different `seed` draws different points"),
        );
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut axis = Axis { keys: Vec::new(), rows: vec![Vec::new(); count], labels: Vec::new() };
    axis.labels = (1..=count).map(|number| format!("draw={number:0width$}", width = count.to_string().len())).collect();
    for (key, node) in table.flat(is_distribution) {
        let draw = Draw::read(&key, &node).map_err(|problem| vec![problem])?;
        axis.keys.push(key);
        for row in &mut axis.rows {
            row.push(Node { value: draw.value(&mut random), span: node.span.clone() });
        }
    }
    Ok(axis)
}

/// A distribution of values.
enum Draw {
    Uniform(f64, f64),
    LogUniform(f64, f64),
    Integer(i64, i64),
    Choice(Vec<Value>),
}

impl Draw {
    fn read(key: &str, node: &Node) -> Result<Self, Diagnostic> {
        let wrong = |message: String| {
            Diagnostic::new(message, Some(node.span.clone())).help(
                "write `{ uniform = [0.0, 0.1] }`, `{ log_uniform = [1e-5, 1e-3] }`, `{ integer = [1, 8] }` or \
                 `{ choice = [64, 128] }`",
            )
        };
        let Value::Table(table) = &node.value else { return Err(wrong(format!("`{key}` needs a distribution"))) };
        let [Entry { key: kind, node: Node { value: Value::Array(items), .. }, .. }] = table.0.as_slice() else {
            return Err(wrong(format!("`{key}` needs exactly one distribution")));
        };
        let numbers: Vec<f64> = items.iter().filter_map(|item| item.value.as_number()).collect();
        let integers: Vec<i64> =
            items.iter().filter_map(|item| if let Value::Integer(n) = item.value { Some(n) } else { None }).collect();
        // Reject infinite ranges, which can't be sampled.
        let width = numbers.windows(2).map(|pair| pair[1] - pair[0]).sum::<f64>();
        let numbers = if width.is_finite() { numbers } else { Vec::new() };
        match (kind.as_str(), numbers.as_slice(), integers.as_slice()) {
            ("uniform", [from, to], _) if items.len() == 2 && from < to => Ok(Self::Uniform(*from, *to)),
            ("log_uniform", [from, to], _) if items.len() == 2 && 0.0 < *from && from < to => {
                Ok(Self::LogUniform(from.ln(), to.ln()))
            }
            ("integer", _, [from, to]) if items.len() == 2 && from <= to => Ok(Self::Integer(*from, *to)),
            ("choice", ..) if !items.is_empty() => {
                Ok(Self::Choice(items.iter().map(|item| item.value.clone()).collect()))
            }
            ("log_uniform", ..) => {
                Err(wrong(format!("`{key}`: `log_uniform` needs two positive numbers, the smaller first")))
            }
            ("uniform" | "integer", ..) => {
                Err(wrong(format!("`{key}`: `{kind}` needs two numbers, the smaller first")))
            }
            _ => Err(wrong(format!("`{key}`: unknown distribution `{kind}`"))),
        }
    }

    fn value(&self, random: &mut ChaCha8Rng) -> Value {
        match self {
            Self::Uniform(from, to) => Value::Float(short(random.random_range(*from..*to))),
            Self::LogUniform(from, to) => Value::Float(short(random.random_range(*from..*to).exp())),
            Self::Integer(from, to) => Value::Integer(random.random_range(*from..=*to)),
            Self::Choice(values) => values[random.random_range(0..values.len())].clone(),
        }
    }
}

/// Rounds to four significant digits: enough to tell values apart, and easy to read and type.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}
