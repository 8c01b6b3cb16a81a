//! Reads one stage of a pipeline: from its table to a declaration with a known kind and a complete configuration.
//! Independent of other stages.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::{
    KINDS, KindVisitor, Stage,
    contract::{input::Input, job::Runtime, paths::may_be_a_repository, stage::Shards},
    visit,
};

use super::{
    de,
    declaration::StageDecl,
    diagnostic::{Diagnostic, Diagnostics, Sources, Span},
    read::{bad_name, is_name, scalar},
    value::{Entry, Node, Table, Value},
};

/// A declaration whose inputs are still names.
#[derive(Clone)]
pub(super) struct Declared {
    pub(super) stage: StageDecl,
    pub(super) inputs: BTreeMap<String, (String, Span)>,
}

/// The stage that an entry declares, preceded by its shards if it has any.
pub(super) fn stage(entry: Entry, pipeline_seed: u64, sources: &Sources) -> Result<Vec<Declared>, Diagnostics> {
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

/// Reads a stage once its kind is known.
struct Reading<'a> {
    name: String,
    key_span: Span,
    table: Table,
    pipeline_seed: u64,
    sources: &'a Sources,
}

impl KindVisitor for Reading<'_> {
    type Output = Result<Vec<Declared>, Diagnostics>;

    fn visit<S: Stage>(mut self) -> Self::Output {
        let mut problems = Diagnostics::new();
        let seed = scalar(&mut self.table, "seed", self.pipeline_seed, &mut problems);
        let runtime = scalar(&mut self.table, "runtime", Runtime::default(), &mut problems);
        let inputs = self.take_inputs::<S>(&mut problems);
        // For users, inputs are keys of the same table, so an unknown key may be a misspelt input.
        let taken: Vec<&str> = S::INPUTS.iter().map(|input| input.name).chain(["runtime", "seed"]).collect();
        let config = match de::from_table::<S::Config>(self.table.clone(), &self.key_span, &taken, S::FOREIGN_KEYS) {
            Ok(config) => config,
            Err(found) => {
                let of_stage = |problem: Diagnostic| Diagnostic {
                    message: format!("stage `{}`: {}", self.name, problem.message),
                    ..problem
                };
                problems.extend(found.into_iter().map(of_stage));
                return Err(problems);
            }
        };
        let count = |name: &str| inputs.keys().filter(|given| Input::is_of(name, given)).count();
        if let Err(issue) = S::check(&config).and_then(|()| S::check_inputs(&config, &count)) {
            let span = self.span_of(&issue.key);
            problems
                .push(Diagnostic::new(format!("stage `{}`: `{}` {}", self.name, issue.key, issue.message), Some(span)));
        }
        let uses_gpu = S::uses_gpu(&config, &count);
        let cpus = if runtime.cpus == 0 { S::cpus(&config) } else { runtime.cpus };
        let shown = S::shown_as(&config);
        let sources = self.resolve_sources(&S::sources(&config), &mut problems);
        let mut canonical = |config: &S::Config| {
            serde_json::to_value(config).unwrap_or_else(|error| {
                problems.push(Diagnostic::new(format!("stage `{}`: {error}", self.name), Some(self.key_span.clone())));
                serde_json::Value::Null
            })
        };
        let shards = S::shards(&config).map(|shards| {
            let configs = shards.configs.iter().map(&mut canonical).collect();
            Shards { configs, input: shards.input, outputs: shards.outputs }
        });
        let config = canonical(&config);
        if !problems.is_empty() {
            return Err(problems);
        }
        let stage = StageDecl {
            part_of: None,
            owners: vec![(0, self.name.clone())],
            name: self.name,
            kind: S::KIND,
            version: S::VERSION,
            seed,
            config,
            runtime,
            cpus,
            uses_gpu,
            uses_all_gpus: S::uses_all_gpus(),
            shown,
            inputs: BTreeMap::new(),
            sources,
            span: self.key_span,
        };
        let declared = Declared { stage, inputs };
        Ok(match shards {
            Some(shards) if declared.inputs.contains_key(shards.input) => in_shards(declared, shards),
            _ => vec![declared],
        })
    }
}

/// The shards of a stage, and the stage itself with their outputs as its inputs.
fn in_shards(mut whole: Declared, shards: Shards<serde_json::Value>) -> Vec<Declared> {
    let count = shards.configs.len();
    let shard = |(index, config)| {
        let mut shard = whole.clone();
        shard.stage.name = format!("{}-{}of{count}", whole.stage.name, index + 1);
        shard.stage.owners = vec![(0, shard.stage.name.clone())];
        shard.stage.config = config;
        shard.stage.part_of = Some(whole.stage.name.clone());
        shard
    };
    let mut stages: Vec<Declared> = shards.configs.into_iter().enumerate().map(shard).collect();
    whole.inputs.remove(shards.input);
    // The shards compute. What is left only joins their outputs.
    whole.stage.uses_gpu = false;
    (whole.stage.runtime.gpus, whole.stage.runtime.device) = (0, None);
    for (index, shard) in stages.iter().enumerate() {
        let input = Input::name_at(shards.outputs, index);
        whole.inputs.insert(input, (shard.stage.name.clone(), whole.stage.span.clone()));
    }
    stages.push(whole);
    stages
}

impl Reading<'_> {
    /// Takes the keys that name other stages out of the table.
    fn take_inputs<S: Stage>(&mut self, problems: &mut Diagnostics) -> BTreeMap<String, (String, Span)> {
        let mut inputs = BTreeMap::new();
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
                            Some(stage) => drop(inputs.insert(name, (stage.to_string(), node.span.clone()))),
                            None => problems.push(self.no_stage_name(&name, &node)),
                        }
                    }
                }
                Some(entry) => match entry.node.as_str() {
                    Some(stage) => {
                        inputs.insert(input.name.to_string(), (stage.to_string(), entry.node.span.clone()));
                    }
                    None => problems.push(self.no_stage_name(input.name, &entry.node)),
                },
                None if input.required => problems.push(self.no_input(input)),
                None => {}
            }
        }
        inputs
    }

    /// The error for a required input that is missing.
    fn no_input(&self, input: &Input) -> Diagnostic {
        Diagnostic::new(
            format!("stage `{}`: the input `{}` is missing", self.name, input.name),
            Some(self.key_span.clone()),
        )
        .help(format!("add `{} = \"STAGE\"`, the name of a stage that provides {}", input.name, input.about))
    }

    /// The error for an input that is not the name of a stage.
    fn no_stage_name(&self, input: &str, node: &Node) -> Diagnostic {
        Diagnostic::new(
            format!("stage `{}`: `{input}` must be the name of a stage, as a string", self.name),
            Some(node.span.clone()),
        )
        .label(format!("this is {}", node.type_name()))
    }

    /// The span of a dotted key, or of the innermost table around it that is in the file.
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

    /// Resolves the user's files to absolute paths. Relative paths start from the folder of the file that names them.
    fn resolve_sources(&self, written: &[String], problems: &mut Diagnostics) -> BTreeMap<String, PathBuf> {
        let mut resolved = BTreeMap::new();
        for source in written {
            let node = self.table.0.iter().find_map(|entry| entry.node.find_str(source));
            let span = node.map_or(&self.key_span, |node| &node.span);
            let base = self.sources.path(span.file).parent().map(PathBuf::from).unwrap_or_default();
            let from_here = || std::path::absolute(base.join(source)).unwrap_or_else(|_| base.join(source));
            let path =
                self.sources.originals.get(&self.name).and_then(|of| of.get(source)).cloned().unwrap_or_else(from_here);
            match path.metadata() {
                Ok(_) => {
                    resolved.insert(source.clone(), path);
                }
                Err(error) => {
                    let help = if source.starts_with('~') {
                        "`~` is not expanded here: write the full path".into()
                    } else if may_be_a_repository(source) {
                        format!(
                            "relative paths start from the folder of the pipeline file; a repository of the Hugging Face hub is \
                             written `hf://{source}`"
                        )
                    } else {
                        "relative paths start from the folder of the pipeline file".to_string()
                    };
                    problems.push(
                        Diagnostic::new(
                            format!("stage `{}`: can't read {}: {error}", self.name, path.display()),
                            Some(span.clone()),
                        )
                        .help(help),
                    );
                }
            }
        }
        resolved
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use crate::pipeline::{self, Pipeline, Sources};

    fn stages(text: &str) -> Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        pipeline::load(&file, &[], &mut Sources::default()).unwrap()
    }

    const MODELS: &str = "[stages.x]\nkind = \"download\"\nsource = \"builtin:shapes\"\n";

    #[test]
    fn the_default_precision_leaves_keys_as_they_were_before_there_was_a_choice() {
        for stage in [
            "kind = \"pretrain\"\nllm = \"x\"\nvision = \"x\"\ndata = \"x\"",
            "kind = \"finetune\"\nmodel = \"x\"\ndata = \"x\"",
            "kind = \"eval\"\nmodel = \"x\"\ndata = \"x\"\nbenchmark = \"pope\"",
            "kind = \"preprocess\"\ndata = \"x\"\ntokenizer = \"x\"\nannotations = \"x\"\ntemplate = \"phi2\"\n\
             cache_vision_features = \"x\"",
        ] {
            let config = |precision: &str| {
                let pipeline = stages(&format!("{MODELS}[stages.y]\n{stage}\n{precision}"));
                pipeline.stages[1].config.clone()
            };
            let usual = config("");
            assert!(usual.get("precision").is_none(), "{usual}");
            assert_eq!(config("precision = \"f32\""), usual);
            assert_eq!(config("precision = \"bf16\"")["precision"], "bf16");
        }
    }

    #[test]
    fn all_imps_train_and_answer_in_bf16() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
        for name in ["v1_3b", "v1_5_2b", "v1_5_3b", "v1_5_3b_196", "v1_5_4b"] {
            let file = root.join(name).with_extension("toml");
            let pipeline = pipeline::load(&file, &[], &mut Sources::default()).unwrap();
            let computing: Vec<_> = pipeline.stages.iter().filter(|stage| stage.uses_gpu).collect();
            assert_eq!(computing.len(), 19, "{name}");
            assert!(computing.iter().all(|stage| stage.config["precision"] == "bf16"), "{name}");
        }
    }

    #[test]
    fn a_stage_uses_a_gpu_if_it_runs_a_model() {
        let uses = |stage: &str| {
            let pipeline = stages(&format!("{MODELS}[stages.y]\n{stage}\nruntime = {{ gpus = 1 }}"));
            let stages = pipeline.stages.iter().filter(|stage| stage.name != "x");
            stages.map(|stage| (stage.uses_gpu, stage.runtime.gpus)).collect::<Vec<_>>()
        };
        assert_eq!(uses("kind = \"merge\"\nmodel = \"x\""), [(false, 1)]);
        let records =
            "kind = \"preprocess\"\ndata = \"x\"\ntokenizer = \"x\"\nannotations = \"x\"\ntemplate = \"phi2\"";
        assert_eq!(uses(records), [(false, 1)]);
        assert_eq!(uses(&format!("{records}\ncache_vision_features = \"x\"")), [(true, 1)]);
        let eval = "kind = \"eval\"\ndata = \"x\"\nbenchmark = \"pope\"";
        assert_eq!(uses(&format!("{eval}\nmodel = \"x\"")), [(true, 1)]);
        assert_eq!(uses(&format!("{eval}\nanswers = \"x\"")), [(false, 1)]);
        // Two shards that answer, and the stage that scores.
        let shards = uses(&format!("{eval}\nmodel = \"x\"\nshards = 2"));
        assert_eq!(shards, [(true, 1), (true, 1), (false, 0)]);
    }
}
