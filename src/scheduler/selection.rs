//! Which stages the user wants to run, and which to run again. Independent of the store.

use crate::pipeline::{Diagnostic, Graph, Pipeline};

/// Names of stages, as on the command line. Empty lists change nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names<'a> {
    /// Only these.
    pub(crate) only: &'a [String],
    /// These and the stages that they need.
    pub(crate) until: &'a [String],
    /// These and the stages that need them.
    pub(crate) from: &'a [String],
    /// Run these again even if they are cached.
    pub(crate) force: &'a [String],
}

/// The stages that may run. The others are only looked up in the cache.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    included: Vec<bool>,
    forced: Vec<bool>,
}

impl Selection {
    /// All stages, none forced.
    pub(crate) fn everything(pipeline: &Pipeline) -> Self {
        Self { included: vec![true; pipeline.stages.len()], forced: vec![false; pipeline.stages.len()] }
    }

    /// Resolves names to stages. Several lists select the stages that are in all of them.
    ///
    /// # Errors
    /// If no stage has one of the names.
    pub(crate) fn new(names: &Names<'_>, pipeline: &Pipeline, graph: &Graph) -> Result<Self, Diagnostic> {
        let mut included = vec![true; pipeline.stages.len()];
        let mut narrow = |flag: &str, names: &[String], reach: &dyn Fn(usize) -> Vec<usize>| {
            if names.is_empty() {
                return Ok(());
            }
            let mut reached = vec![false; included.len()];
            let mut open = find(flag, names, pipeline)?;
            while let Some(index) = open.pop() {
                if !std::mem::replace(&mut reached[index], true) {
                    open.extend(reach(index));
                }
            }
            included.iter_mut().zip(reached).for_each(|(included, reached)| *included &= reached);
            Ok(())
        };
        narrow("--only", names.only, &|_| Vec::new())?;
        narrow("--until", names.until, &|index| graph.inputs(index).collect())?;
        narrow("--from", names.from, &|index| graph.users(index).collect())?;
        let mut forced = vec![false; included.len()];
        for index in find("--force", names.force, pipeline)? {
            forced[index] = true;
        }
        Ok(Self { included, forced })
    }

    /// Whether all stages may run.
    pub(crate) fn is_everything(&self) -> bool {
        self.included.iter().all(|included| *included)
    }

    /// Whether the stage may run.
    pub(crate) fn includes(&self, index: usize) -> bool {
        self.included[index]
    }

    /// Whether the stage runs even if it is cached.
    pub(crate) fn forces(&self, index: usize) -> bool {
        self.forced[index] && self.included[index]
    }
}

/// The stages with these names, in all points of a sweep.
fn find(flag: &str, names: &[String], pipeline: &Pipeline) -> Result<Vec<usize>, Diagnostic> {
    let mut found = Vec::new();
    for name in names.iter().flat_map(|names| names.split(',')).map(str::trim) {
        let before = found.len();
        found.extend(pipeline.named(name));
        // A stage with shards is selected together with them.
        let is_shard = |index: &usize| pipeline.stages[*index].part_of.as_deref() == Some(name);
        found.extend((0..pipeline.stages.len()).filter(is_shard));
        if found.len() == before {
            let known = pipeline.stages.iter().map(|stage| stage.owners[0].1.as_str());
            return Err(Diagnostic::new(format!("{flag} {name}: there is no such stage"), None).suggest(name, known));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pipeline::{self, Sources};

    /// `a -> b -> d` and `a -> c -> d`.
    const DIAMOND: &str = r#"
stages.a = { kind = "synthetic" }
stages.b = { kind = "synthetic", after = "a" }
stages.c = { kind = "synthetic", after = "a" }
stages.d = { kind = "synthetic", after = ["b", "c"] }
"#;

    fn selected(only: &[&str], until: &[&str], from: &[&str], force: &[&str]) -> Result<(String, String), String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, DIAMOND).unwrap();
        let pipeline = pipeline::load(&file, &[], &mut Sources::default()).unwrap();
        let graph = Graph::new(&pipeline).unwrap();
        let lists = [only, until, from, force].map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
        let names = Names { only: &lists[0], until: &lists[1], from: &lists[2], force: &lists[3] };
        let selection = Selection::new(&names, &pipeline, &graph).map_err(|problem| problem.message)?;
        let list =
            |test: &dyn Fn(usize) -> bool| (0..4).filter(|at| test(*at)).map(|at| ["a", "b", "c", "d"][at]).collect();
        Ok((list(&|index| selection.includes(index)), list(&|index| selection.forces(index))))
    }

    #[test]
    fn stages_are_selected_by_name_and_dependency() {
        let included = |only: &[&str], until: &[&str], from: &[&str]| selected(only, until, from, &[]).unwrap().0;
        assert_eq!(included(&[], &[], &[]), "abcd");
        assert_eq!(included(&["b"], &[], &[]), "b");
        assert_eq!(included(&["b,c"], &[], &[]), "bc");
        assert_eq!(included(&[], &["b"], &[]), "ab");
        assert_eq!(included(&[], &[], &["b"]), "bd");
        assert_eq!(included(&[], &["c"], &["a"]), "ac");
        assert_eq!(selected(&["b"], &[], &[], &["b", "c"]).unwrap().1, "b", "a stage that is left out is not forced");
        assert_eq!(selected(&["e"], &[], &[], &[]).unwrap_err(), "--only e: there is no such stage");
    }
}
