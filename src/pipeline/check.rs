//! Checks a merged table and turns it into a [`Pipeline`], in which every stage has a known kind, a complete configuration and
//! inputs that exist. Reports all errors, not only the first.

use std::collections::{HashMap, HashSet};

use super::{
    declaration::{Pipeline, Point, StageDecl},
    diagnostic::{Diagnostic, Diagnostics, Sources, Span},
    read::{bad_name, is_name, scalar},
    stage::{Declared, stage},
    value::{Entry, Node, Table, Value},
};

const TOP_KEYS: &[&str] = &["name", "extends", "seed", "vars", "stages", "sweep"];

/// The stages that have each key.
fn stages_with_keys(table: &Table) -> HashMap<String, Vec<String>> {
    let mut found: HashMap<String, Vec<String>> = HashMap::new();
    let stages = table.0.iter().find(|entry| entry.key == "stages").map(|entry| &entry.node.value);
    let Some(Value::Table(stages)) = stages else { return found };
    for stage in &stages.0 {
        let Value::Table(keys) = &stage.node.value else { continue };
        for key in &keys.0 {
            found.entry(key.key.clone()).or_default().push(stage.key.clone());
        }
    }
    found
}

/// The pipeline that a table declares.
pub(super) fn pipeline(mut table: Table, file_stem: &str, sources: &Sources) -> Result<Pipeline, Diagnostics> {
    let mut problems = Diagnostics::new();
    let name = scalar(&mut table, "name", file_stem.to_string(), &mut problems);
    if !is_name(&name) {
        problems.push(bad_name("pipeline", &name, Some(Span::whole_file(0))));
    }
    let seed: u64 = scalar(&mut table, "seed", 0, &mut problems);
    let stage_names: Vec<String> = table.keys_of("stages").into_iter().map(Into::into).collect();
    let with_key = stages_with_keys(&table);
    let stages = table.remove("stages");
    // `imp-flow sweep` has already read it; other verbs ignore it.
    table.remove("sweep");
    for Entry { key, key_span, .. } in &table.0 {
        let problem = Diagnostic::new(format!("unknown key `{key}`"), Some(key_span.clone()));
        let problem = problem.label("not a key of a pipeline");
        problems.push(if stage_names.contains(key) {
            problem.help(format!("did you mean `stages.{key}`?"))
        } else if let Some(stages) = with_key.get(key) {
            let paths: Vec<String> = stages.iter().map(|stage| format!("`stages.{stage}.{key}`")).collect();
            problem.help(format!("a stage's key goes to its stage: {}", paths.join(", ")))
        } else {
            problem.suggest(key, TOP_KEYS.iter().copied())
        });
    }

    let mut declared = Vec::new();
    match stages {
        Some(Entry { node: Node { value: Value::Table(stages), .. }, .. }) => {
            for entry in stages.0 {
                match stage(entry, seed, sources) {
                    Ok(stages) => declared.extend(stages),
                    Err(found) => problems.extend(found),
                }
            }
        }
        Some(entry) => problems.push(Diagnostic::new("`stages` must be a table", Some(entry.node.span))),
        None => problems.push(
            Diagnostic::new("this pipeline has no stages", Some(Span::whole_file(0)))
                .help("add one, as in `[stages.phi]` with `kind = \"download\"`; `imp-flow init` writes an example"),
        ),
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let stages = find_inputs(declared)?;
    Ok(Pipeline { name, stages, points: vec![Point::default()] })
}

/// Errors for stages with the same name. Keys are unique, so one of the two is a shard of another stage.
fn check_names(declared: &[Declared]) -> Diagnostics {
    let mut seen = HashSet::new();
    let repeated = declared.iter().map(|declared| &declared.stage).filter(|stage| !seen.insert(stage.name.as_str()));
    repeated
        .map(|stage| {
            let message = format!("there are two stages called `{}`: one is a shard of another stage", stage.name);
            Diagnostic::new(message, Some(stage.span.clone())).help("rename this one")
        })
        .collect()
}

/// Replaces the names of inputs by the indices of stages. Every input must name another stage.
fn find_inputs(declared: Vec<Declared>) -> Result<Vec<StageDecl>, Diagnostics> {
    let mut problems = check_names(&declared);
    let names: Vec<String> = declared.iter().map(|declared| declared.stage.name.clone()).collect();
    let positions: HashMap<&str, usize> =
        names.iter().enumerate().map(|(index, name)| (name.as_str(), index)).collect();
    let mut stages = Vec::with_capacity(declared.len());
    for Declared { mut stage, inputs } in declared {
        for (input, (target, span)) in inputs {
            match positions.get(target.as_str()) {
                Some(position) => drop(stage.inputs.insert(input, *position)),
                None => problems.push(no_such_stage(&stage.name, &input, &target, span, &names)),
            }
        }
        stages.push(stage);
    }
    if problems.is_empty() { Ok(stages) } else { Err(problems) }
}

fn no_such_stage(stage: &str, input: &str, target: &str, span: Span, names: &[String]) -> Diagnostic {
    let others = names.iter().map(String::as_str).filter(|name| *name != stage);
    let message = format!("stage `{stage}`: its input `{input}` names the stage `{target}`, which does not exist");
    let problem = Diagnostic::new(message, Some(span)).label("no such stage");
    if target.starts_with('[') {
        return problem.help("the names in a list need quotes: `[\"a\", \"b\"]`");
    }
    problem.suggest(target, others)
}
