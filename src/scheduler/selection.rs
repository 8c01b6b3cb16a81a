//! Which stages the user wants to run, and which to run again. Independent of the store.

use crate::pipeline::{Diagnostic, Graph, Pipeline};

/// Names of stages, as on the command line. Empty lists change nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names<'a> {
    /// These and no others.
    pub(crate) only: &'a [String],
    /// These and what they need.
    pub(crate) until: &'a [String],
    /// These and the stages that need them.
    pub(crate) from: &'a [String],
    /// Run these again although they are cached.
    pub(crate) force: &'a [String],
}

/// The stages that may run. Those that are not wanted are taken from the cache if they are there.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    wanted: Vec<bool>,
    forced: Vec<bool>,
}

impl Selection {
    /// All stages, none forced.
    pub(crate) fn everything(pipeline: &Pipeline) -> Self {
        Self { wanted: vec![true; pipeline.stages.len()], forced: vec![false; pipeline.stages.len()] }
    }

    /// # Errors
    /// If there is no stage of a name.
    pub(crate) fn new(names: &Names<'_>, pipeline: &Pipeline, graph: &Graph) -> Result<Self, Diagnostic> {
        let mut wanted = vec![true; pipeline.stages.len()];
        let mut narrow = |flag: &str, names: &[String], reach: &dyn Fn(usize) -> Vec<usize>| {
            if names.is_empty() {
                return Ok(());
            }
            let mut reached = vec![false; wanted.len()];
            let mut open = find(flag, names, pipeline)?;
            while let Some(index) = open.pop() {
                if !std::mem::replace(&mut reached[index], true) {
                    open.extend(reach(index));
                }
            }
            wanted.iter_mut().zip(reached).for_each(|(wanted, reached)| *wanted &= reached);
            Ok(())
        };
        narrow("--only", names.only, &|_| Vec::new())?;
        narrow("--until", names.until, &|index| graph.inputs(index).collect())?;
        narrow("--from", names.from, &|index| graph.users(index).collect())?;
        let mut forced = vec![false; wanted.len()];
        for index in find("--force", names.force, pipeline)? {
            forced[index] = true;
        }
        Ok(Self { wanted, forced })
    }

    /// Whether nothing is left out.
    pub(crate) fn is_everything(&self) -> bool {
        self.wanted.iter().all(|wanted| *wanted)
    }

    /// Whether the stage may run.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.wanted[index]
    }

    /// Whether the stage runs although it is cached.
    pub(crate) fn forces(&self, index: usize) -> bool {
        self.forced[index] && self.wanted[index]
    }
}

/// The stages of these names, in all points of a sweep.
fn find(flag: &str, names: &[String], pipeline: &Pipeline) -> Result<Vec<usize>, Diagnostic> {
    let mut found = Vec::new();
    for name in names.iter().flat_map(|names| names.split(',')).map(str::trim) {
        let before = found.len();
        found.extend(pipeline.named(name));
        // A stage that runs in parts is chosen together with them.
        let parts = |index: &usize| pipeline.stages[*index].part_of.as_deref() == Some(name);
        found.extend((0..pipeline.stages.len()).filter(parts));
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
        Ok((list(&|index| selection.wants(index)), list(&|index| selection.forces(index))))
    }

    #[test]
    fn stages_are_chosen_by_name_and_by_what_they_need() {
        let wanted = |only: &[&str], until: &[&str], from: &[&str]| selected(only, until, from, &[]).unwrap().0;
        assert_eq!(wanted(&[], &[], &[]), "abcd");
        assert_eq!(wanted(&["b"], &[], &[]), "b");
        assert_eq!(wanted(&["b,c"], &[], &[]), "bc");
        assert_eq!(wanted(&[], &["b"], &[]), "ab");
        assert_eq!(wanted(&[], &[], &["b"]), "bd");
        assert_eq!(wanted(&[], &["c"], &["a"]), "ac");
        assert_eq!(selected(&["b"], &[], &[], &["b", "c"]).unwrap().1, "b", "what is left out is not forced");
        assert_eq!(selected(&["e"], &[], &[], &[]).unwrap_err(), "--only e: there is no such stage");
    }
}
