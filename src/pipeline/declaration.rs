//! What a pipeline declares: its stages and the points of its sweep. Plain data.

use std::{collections::BTreeMap, path::PathBuf};

use imp_stages::job::Runtime;

use super::diagnostic::Span;

/// A pipeline whose parts are known to be well-formed. Cycles are found later, by the graph.
#[derive(Debug)]
pub(crate) struct Pipeline {
    pub(crate) name: String,
    /// In the order in which the file has them. Points of a sweep share those that are the same for them.
    pub(crate) stages: Vec<StageDecl>,
    /// The points of a sweep; a pipeline by itself is a single point without values.
    pub(crate) points: Vec<Point>,
}

impl Pipeline {
    /// How a point is known over runs: the pipeline's name, and the point's.
    pub(crate) fn id(&self, point: usize) -> String {
        match self.points[point].label.as_str() {
            "" => self.name.clone(),
            label => format!("{}/{label}", self.name),
        }
    }

    /// The stages called `name`, by themselves or by any point; `POINT/STAGE` is that of one point.
    pub(crate) fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = usize> + 'a {
        let (point, of_point) = name.rsplit_once('/').unwrap_or(("", name));
        let owned = move |(owner, stage): &(usize, String)| {
            stage == of_point && (point.is_empty() || self.points[*owner].label == point)
        };
        let is = move |stage: &&StageDecl| stage.name == name || stage.owners.iter().any(owned);
        self.stages.iter().enumerate().filter(move |(_, stage)| is(stage)).map(|(index, _)| index)
    }
}

/// A pipeline with its own values for some keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Point {
    /// Its name, and that of its folder: `lora_rank=64`. Empty for a pipeline by itself.
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
    /// Threads that it takes: those of `runtime`, or what its kind usually needs; 0 for all.
    pub(crate) cpus: usize,
    /// Input name -> the position of the stage that it names.
    pub(crate) inputs: BTreeMap<String, usize>,
    /// Files of the user that the configuration names: as written -> absolute path.
    pub(crate) sources: BTreeMap<String, PathBuf>,
    /// Where the stage's name stands.
    pub(crate) span: Span,
    /// The stage of which it does a part.
    pub(crate) part_of: Option<String>,
    /// For whom it is: the positions of points, and what they call it.
    pub(crate) owners: Vec<(usize, String)>,
}
