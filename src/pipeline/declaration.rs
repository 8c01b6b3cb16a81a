//! What a pipeline declares: its stages and the points of its sweep. Plain data.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::contract::{job::Runtime, published::Shown};

use super::diagnostic::Span;

/// A pipeline with valid stages. Cycles are found later, by the graph.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) name: String,
    /// In the order of the file. Points of a sweep share stages that are the same in each of them.
    pub(crate) stages: Vec<StageDecl>,
    /// The points of a sweep; without a sweep, a single point without values.
    pub(crate) points: Vec<Point>,
}

impl Pipeline {
    /// The identifier of a point, the same in every run: the pipeline's name and the point's label.
    pub(crate) fn id(&self, point: usize) -> String {
        match self.points[point].label.as_str() {
            "" => self.name.clone(),
            label => format!("{}/{label}", self.name),
        }
    }

    /// The stages called `name`, in the whole pipeline or in any point; `POINT/STAGE` selects one point.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        let (point, of_point) = name.rsplit_once('/').unwrap_or(("", name));
        let owned = move |(owner, stage): &(usize, String)| {
            stage == of_point && (point.is_empty() || self.points[*owner].label == point)
        };
        let matches = move |stage: &&StageDecl| stage.name == name || stage.owners.iter().any(owned);
        self.stages.iter().enumerate().filter(move |(_, stage)| matches(stage)).map(|(index, _)| index)
    }
}

/// One point of a sweep: the pipeline with its own values for some keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Point {
    /// Its name, which is also the name of its folder: `lora_rank=64`. Empty without a sweep.
    pub(crate) label: String,
    /// Dotted key -> value, as written.
    pub(crate) values: Vec<(String, String)>,
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
    /// CPU threads: the number in `runtime`, else the default of its kind; 0 for all.
    pub(crate) cpus: usize,
    /// Whether it can compute on a GPU.
    pub(crate) uses_gpu: bool,
    /// Whether it computes on all GPUs that it is given, and not only on the first.
    pub(crate) uses_all_gpus: bool,
    /// How its results are shown in a table of published results, if at all.
    pub(crate) shown: Option<Shown>,
    /// Input name -> index of the stage that it names.
    pub(crate) inputs: BTreeMap<String, usize>,
    /// The user's files that the configuration names: path as written -> absolute path.
    pub(crate) sources: BTreeMap<String, PathBuf>,
    /// The position of the stage's name in the file.
    pub(crate) span: Span,
    /// The name of the stage that this is a shard of.
    pub(crate) part_of: Option<String>,
    /// The points that it belongs to, by index, with its name in each.
    pub(crate) owners: Vec<(usize, String)>,
}
