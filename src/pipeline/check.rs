//! From a merged table to a [`Pipeline`] in which every stage has a known kind, a full configuration and
//! inputs that exist. Finds all mistakes, not just the first.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
};

use imp_stages::{
    KINDS, KindVisitor, Stage,
    job::Runtime,
    stage::{Input, Parts},
    visit,
};

use super::{
    Diagnostic, Diagnostics, Sources, de,
    diagnostic::Span,
    load::whole_file,
    value::{Entry, Node, Table, Value},
};

/// A pipeline whose parts are known to be well-formed. Cycles are found later, by the graph.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) name: String,
    /// In the order in which the file has them.
    pub(crate) stages: Vec<StageDecl>,
    positions: HashMap<String, usize>,
}

impl Pipeline {
    /// The index of the stage called `name`.
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.positions.get(name).copied()
    }
}

/// One stage as the user declared it, with defaults filled in.
#[derive(Debug, Clone)]
pub(crate) struct StageDecl {
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) version: u32,
    pub(crate) seed: u64,
    /// The configuration, all defaults included.
    pub(crate) config: serde_json::Value,
    pub(crate) runtime: Runtime,
    /// Input name -> the stage that it names.
    pub(crate) inputs: BTreeMap<String, String>,
    /// Files of the user that the configuration names: as written -> absolute path.
    pub(crate) sources: BTreeMap<String, PathBuf>,
    /// Where the stage's name stands, and where each input does.
    pub(crate) span: Span,
    pub(crate) input_spans: BTreeMap<String, Span>,
}

const TOP_KEYS: &[&str] = &["name", "extends", "seed", "vars", "stages"];

/// Checks a whole pipeline.
pub(super) fn pipeline(mut table: Table, file_stem: &str, sources: &Sources) -> Result<Pipeline, Diagnostics> {
    let mut problems = Diagnostics::new();
    let name = scalar(&mut table, "name", file_stem.to_string(), &mut problems);
    if !is_name(&name) {
        problems.push(bad_name("pipeline", &name, Some(whole_file(0))));
    }
    let seed: u64 = scalar(&mut table, "seed", 0, &mut problems);
    let stages = table.remove("stages");
    for entry in &table.0 {
        problems.push(
            Diagnostic::new(format!("unknown key `{}`", entry.key), Some(entry.key_span.clone()))
                .label("not a key of a pipeline")
                .suggest(&entry.key, TOP_KEYS.iter().copied()),
        );
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
            Diagnostic::new("this pipeline has no stages", Some(whole_file(0)))
                .help("add one, as in `[stages.phi]` with `kind = \"download\"`; `imp-flow init` writes an example"),
        ),
    }
    if problems.is_empty() {
        check_names(&declared, &mut problems);
        check_inputs(&declared, &mut problems);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let positions: HashMap<String, usize> =
        declared.iter().enumerate().map(|(index, stage)| (stage.name.clone(), index)).collect();
    Ok(Pipeline { name, stages: declared, positions })
}

fn scalar<T: serde::de::DeserializeOwned>(table: &mut Table, key: &str, default: T, problems: &mut Diagnostics) -> T {
    let Some(entry) = table.remove(key) else { return default };
    de::from_node(&entry.node).unwrap_or_else(|mut problem| {
        problem.message = format!("`{key}`: {}", problem.message);
        problems.push(problem);
        default
    })
}

/// Names become names of folders.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 100
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn bad_name(of: &str, name: &str, span: Option<Span>) -> Diagnostic {
    Diagnostic::new(format!("`{name}` can't be the name of a {of}"), span)
        .help("use letters, digits, `-` and `_`; it becomes the name of a folder")
}

/// The stage that an entry declares, behind those that do it in parts if there are any.
fn stage(entry: Entry, pipeline_seed: u64, sources: &Sources) -> Result<Vec<StageDecl>, Diagnostics> {
    let Entry { key: name, key_span, node } = entry;
    if !is_name(&name) || name.contains('.') {
        return Err(vec![bad_name("stage", &name, Some(key_span))]);
    }
    let Value::Table(mut table) = node.value else {
        return Err(vec![Diagnostic::new(format!("stage `{name}` must be a table"), Some(node.span))]);
    };
    let Some(kind) = table.remove("kind") else {
        return Err(vec![
            Diagnostic::new(format!("stage `{name}` has no `kind`"), Some(key_span))
                .help(format!("add `kind = \"...\"`, one of: {}", KINDS.join(", "))),
        ]);
    };
    let Some(kind_name) = kind.node.as_str() else {
        return Err(vec![Diagnostic::new("`kind` must be a string", Some(kind.node.span))]);
    };
    let reading = Reading { name, key_span, table, pipeline_seed, sources };
    visit(kind_name, reading).unwrap_or_else(|| {
        Err(vec![
            Diagnostic::new(format!("unknown kind of stage `{kind_name}`"), Some(kind.node.span.clone()))
                .label("no such kind")
                .suggest(kind_name, KINDS.iter().copied()),
        ])
    })
}

/// A stage whose kind is about to become a type.
struct Reading<'a> {
    name: String,
    key_span: Span,
    table: Table,
    pipeline_seed: u64,
    sources: &'a Sources,
}

impl KindVisitor for Reading<'_> {
    type Output = Result<Vec<StageDecl>, Diagnostics>;

    fn visit<S: Stage>(mut self) -> Self::Output {
        let mut problems = Diagnostics::new();
        let seed = scalar(&mut self.table, "seed", self.pipeline_seed, &mut problems);
        let runtime = scalar(&mut self.table, "runtime", Runtime::default(), &mut problems);
        let (inputs, input_spans) = self.take_inputs::<S>(&mut problems);
        let config = match de::from_table::<S::Config>(&self.table, &self.key_span) {
            Ok(config) => config,
            Err(mut problem) => {
                // The inputs are keys of the same table for the person who writes it.
                if let Some(key) = problem.message.strip_prefix("unknown key `").and_then(|rest| rest.strip_suffix('`'))
                    && problem.help.as_ref().is_none_or(|help| !help.starts_with("did you mean"))
                {
                    let key = key.to_string();
                    let known: Vec<&str> =
                        S::INPUTS.iter().map(|input| input.name).chain(["runtime", "seed"]).collect();
                    let better = problem.clone().suggest(&key, known);
                    if better.help.as_ref().is_some_and(|help| help.starts_with("did you mean")) {
                        problem = better;
                    }
                }
                problem.message = format!("stage `{}`: {}", self.name, problem.message);
                problems.push(problem);
                return Err(problems);
            }
        };
        let count = |name: &str| inputs.keys().filter(|given| Input::is_of(name, given)).count();
        if let Err(issue) = S::check(&config).and_then(|()| S::check_inputs(&config, &count)) {
            let span = self.span_of(&issue.key);
            problems
                .push(Diagnostic::new(format!("stage `{}`: `{}` {}", self.name, issue.key, issue.message), Some(span)));
        }
        let sources = self.resolve_sources(&S::sources(&config), &mut problems);
        let mut canonical = |config: &S::Config| {
            serde_json::to_value(config).unwrap_or_else(|error| {
                problems.push(Diagnostic::new(format!("stage `{}`: {error}", self.name), Some(self.key_span.clone())));
                serde_json::Value::Null
            })
        };
        let parts = S::parts(&config).map(|parts| {
            let configs = parts.configs.iter().map(&mut canonical).collect();
            Parts { configs, input: parts.input, outputs: parts.outputs }
        });
        let config = canonical(&config);
        if !problems.is_empty() {
            return Err(problems);
        }
        let stage = StageDecl {
            name: self.name,
            kind: S::KIND,
            version: S::VERSION,
            seed,
            config,
            runtime,
            inputs,
            sources,
            span: self.key_span,
            input_spans,
        };
        Ok(match parts {
            Some(parts) if stage.inputs.contains_key(parts.input) => in_parts(stage, parts),
            _ => vec![stage],
        })
    }
}

/// A stage behind those that do it in parts, whose outputs it gets.
fn in_parts(mut stage: StageDecl, parts: Parts<serde_json::Value>) -> Vec<StageDecl> {
    let count = parts.configs.len();
    let part =
        |(index, config)| StageDecl { name: format!("{}-{}of{count}", stage.name, index + 1), config, ..stage.clone() };
    let mut stages: Vec<StageDecl> = parts.configs.into_iter().enumerate().map(part).collect();
    stage.inputs.remove(parts.input);
    for (index, part) in stages.iter().enumerate() {
        let input = Input::name_at(parts.outputs, index);
        stage.input_spans.insert(input.clone(), stage.span.clone());
        stage.inputs.insert(input, part.name.clone());
    }
    stages.push(stage);
    stages
}

impl Reading<'_> {
    /// Takes the keys that name other stages out of the table.
    fn take_inputs<S: Stage>(
        &mut self,
        problems: &mut Diagnostics,
    ) -> (BTreeMap<String, String>, BTreeMap<String, Span>) {
        let (mut inputs, mut spans) = (BTreeMap::new(), BTreeMap::new());
        for input in S::INPUTS {
            match self.table.remove(input.name) {
                Some(Entry { node: Node { value: Value::Array(nodes), .. }, .. }) if input.many => {
                    let alone = nodes.len() == 1;
                    if nodes.is_empty() && input.required {
                        problems.push(self.no_input(input));
                    }
                    for (index, node) in nodes.into_iter().enumerate() {
                        let name = if alone { input.name.to_string() } else { Input::name_at(input.name, index) };
                        match node.as_str() {
                            Some(stage) => {
                                inputs.insert(name.clone(), stage.to_string());
                                spans.insert(name, node.span);
                            }
                            None => problems.push(self.no_stage_name(&name, &node)),
                        }
                    }
                }
                Some(entry) => match entry.node.as_str() {
                    Some(stage) => {
                        inputs.insert(input.name.to_string(), stage.to_string());
                        spans.insert(input.name.to_string(), entry.node.span);
                    }
                    None => problems.push(self.no_stage_name(input.name, &entry.node)),
                },
                None if input.required => problems.push(self.no_input(input)),
                None => {}
            }
        }
        (inputs, spans)
    }

    fn no_input(&self, input: &Input) -> Diagnostic {
        Diagnostic::new(
            format!("stage `{}`: the input `{}` is missing", self.name, input.name),
            Some(self.key_span.clone()),
        )
        .help(format!("add `{} = \"STAGE\"`, a stage that gives {}", input.name, input.about))
    }

    fn no_stage_name(&self, input: &str, node: &Node) -> Diagnostic {
        Diagnostic::new(
            format!("stage `{}`: `{input}` must be the name of a stage, as a string", self.name),
            Some(node.span.clone()),
        )
        .label(format!("this is {}", node.type_name()))
    }

    /// The place of a dotted key, or of the nearest table above it that was written.
    fn span_of(&self, dotted: &str) -> Span {
        let (mut table, mut span) = (&self.table, self.key_span.clone());
        for part in dotted.split('.') {
            let Some(entry) = table.get(part) else { break };
            span = entry.node.span.clone();
            let Value::Table(below) = &entry.node.value else { break };
            table = below;
        }
        span
    }

    /// Files of the user, from the folder of the file that names them.
    fn resolve_sources(&self, written: &[String], problems: &mut Diagnostics) -> BTreeMap<String, PathBuf> {
        let mut resolved = BTreeMap::new();
        for source in written {
            let node = self.table.0.iter().find_map(|entry| entry.node.find_str(source));
            let span = node.map_or(&self.key_span, |node| &node.span);
            let base = self.sources.path(span.file).parent().map(PathBuf::from).unwrap_or_default();
            let path = std::path::absolute(base.join(source)).unwrap_or_else(|_| base.join(source));
            match path.metadata() {
                Ok(_) => {
                    resolved.insert(source.clone(), path);
                }
                Err(error) => problems.push(
                    Diagnostic::new(
                        format!("stage `{}`: can't read {}: {error}", self.name, path.display()),
                        Some(span.clone()),
                    )
                    .help("a relative path is meant from the folder of the pipeline file"),
                ),
            }
        }
        resolved
    }
}

/// A part of a stage must not have the name of another stage.
fn check_names(stages: &[StageDecl], problems: &mut Diagnostics) {
    let mut seen = HashSet::new();
    for stage in stages.iter().filter(|stage| !seen.insert(stage.name.as_str())) {
        let message = format!("there are two stages called `{}`: one is a part of another stage", stage.name);
        problems.push(Diagnostic::new(message, Some(stage.span.clone())).help("give this one another name"));
    }
}

/// Every input must name another stage.
fn check_inputs(stages: &[StageDecl], problems: &mut Diagnostics) {
    let names: Vec<&str> = stages.iter().map(|stage| stage.name.as_str()).collect();
    for stage in stages {
        for (input, target) in &stage.inputs {
            if !names.contains(&target.as_str()) {
                let others = names.iter().copied().filter(|name| *name != stage.name);
                problems.push(
                    Diagnostic::new(
                        format!(
                            "stage `{}`: its input `{input}` names the stage `{target}`, which does not exist",
                            stage.name
                        ),
                        stage.input_spans.get(input).cloned(),
                    )
                    .label("no such stage")
                    .suggest(target, others),
                );
            }
        }
    }
}
