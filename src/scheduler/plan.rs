//! What would run, and why. Looks into the store and changes nothing.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use serde::{Serialize, Serializer};

use super::Selection;
use crate::{
    pipeline::{Graph, Pipeline, StageDecl},
    store::{Change, Digest, Hit, Index, Manifest, Receipt, Store, StoreError, source_digest},
};

/// Why a stage has to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum MissReason {
    /// Nothing is known of such a stage.
    New,
    /// These fields differ from the last receipt of the stage.
    Changed(Vec<Change>),
    /// There is a receipt, but parts of the artifact are gone.
    Lost,
    /// The person wants it to.
    Forced,
}

/// What is known of a stage before anything runs.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    /// Its artifact is in the cache.
    Hit { key: Digest },
    /// It must run.
    Run { key: Digest, reason: MissReason },
    /// Stages before it must run first. If they give the same bytes as last time and `changes` is empty,
    /// it is in the cache.
    After { stages: Vec<usize>, changes: Vec<Change> },
}

/// Compares a pipeline with the store.
pub(crate) struct Planner<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) graph: &'a Graph,
    pub(crate) store: &'a Store,
    pub(crate) index: &'a Index,
}

impl Planner<'_> {
    /// The verdict on every stage, in the order of execution.
    pub(crate) fn plan(&self, selection: &Selection) -> Result<Vec<(usize, Verdict)>, StoreError> {
        let mut outputs: Vec<Option<Digest>> = vec![None; self.pipeline.stages.len()];
        let mut verdicts = Vec::with_capacity(outputs.len());
        for &index in self.graph.order() {
            let verdict = match self.manifest(index, &outputs)? {
                Some(manifest) => {
                    let key = manifest.key();
                    let found = if selection.forces(index) { Err(MissReason::Forced) } else { self.look_up(key)? };
                    match found {
                        Ok((made, _)) => {
                            outputs[index] = Some(made.output.digest);
                            Verdict::Hit { key }
                        }
                        Err(reason) => Verdict::Run { key, reason: self.explain(index, &manifest, reason)? },
                    }
                }
                None => self.after(index, &outputs)?,
            };
            verdicts.push((index, verdict));
        }
        Ok(verdicts)
    }

    /// Everything that decides the result of a stage; `None` while an input's content is not known.
    pub(crate) fn manifest(&self, index: usize, outputs: &[Option<Digest>]) -> Result<Option<Manifest>, StoreError> {
        let stage = &self.pipeline.stages[index];
        let mut inputs = BTreeMap::new();
        for (name, from) in &stage.inputs {
            let Some(digest) = outputs[*from] else { return Ok(None) };
            inputs.insert(name.clone(), digest);
        }
        Ok(Some(self.manifest_of(stage, inputs)?))
    }

    /// What is under this key and the folder of it, if the artifact is whole; else why there is none.
    pub(crate) fn look_up(&self, key: Digest) -> Result<Result<(Hit, PathBuf), MissReason>, StoreError> {
        Ok(match self.store.find(key, self.index)? {
            Some((made, Some(folder))) => Ok((made, folder)),
            Some((_, None)) => Err(MissReason::Lost),
            None => Err(MissReason::New),
        })
    }

    /// Puts `reason` in terms of what the stage was last time.
    pub(crate) fn explain(
        &self,
        index: usize,
        manifest: &Manifest,
        reason: MissReason,
    ) -> Result<MissReason, StoreError> {
        if reason != MissReason::New {
            return Ok(reason);
        }
        Ok(self
            .last_manifest(index)?
            .map_or(MissReason::New, |last| MissReason::Changed(manifest.changes_since(&last))))
    }

    fn after(&self, index: usize, outputs: &[Option<Digest>]) -> Result<Verdict, StoreError> {
        let stage = &self.pipeline.stages[index];
        let mut stages: Vec<usize> = self.graph.inputs(index).filter(|from| outputs[*from].is_none()).collect();
        stages.sort_unstable();
        let Some(last) = self.last_manifest(index)? else { return Ok(Verdict::After { stages, changes: Vec::new() }) };
        // What isn't known yet is taken to be as it was: only the stage's own changes are left.
        let known = |(name, from): (&String, &usize)| {
            Some((name.clone(), outputs[*from].or_else(|| last.inputs.get(name).copied())?))
        };
        let inputs = stage.inputs.iter().filter_map(known).collect();
        let changes = self.manifest_of(stage, inputs)?.changes_since(&last);
        Ok(Verdict::After { stages, changes })
    }

    fn manifest_of(&self, stage: &StageDecl, inputs: BTreeMap<String, Digest>) -> Result<Manifest, StoreError> {
        let sources = stage
            .sources
            .iter()
            .map(|(name, path)| Ok((name.clone(), source_digest(path, self.index)?)))
            .collect::<Result<_, StoreError>>()?;
        Ok(Manifest {
            kind: stage.kind.into(),
            version: stage.version,
            seed: stage.seed,
            config: stage.config.clone(),
            sources,
            inputs,
        })
    }

    fn last_manifest(&self, index: usize) -> Result<Option<Manifest>, StoreError> {
        Ok(self.last_receipt(index)?.map(|receipt| receipt.manifest))
    }

    /// What a stage made the last time that it ran or was found.
    pub(crate) fn last_receipt(&self, index: usize) -> Result<Option<Receipt>, StoreError> {
        let (point, name) = &self.pipeline.stages[index].owners[0];
        let Some(key) = self.index.last(&self.pipeline.id(*point), name) else { return Ok(None) };
        self.store.receipt(key)
    }
}

impl fmt::Display for MissReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("new"),
            Self::Lost => f.write_str("its artifact is gone from the cache"),
            Self::Forced => f.write_str("forced"),
            Self::Changed(changes) => write_changes(f, changes),
        }
    }
}

impl Serialize for MissReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// `config: learning_rate 0.001 -> 0.0005; input data: content changed`.
pub(super) fn write_changes(f: &mut fmt::Formatter<'_>, changes: &[Change]) -> fmt::Result {
    if changes.is_empty() {
        return f.write_str("not in the cache any more");
    }
    for (position, change) in changes.iter().enumerate() {
        if position > 0 {
            f.write_str("; ")?;
        }
        write!(f, "{change}")?;
    }
    Ok(())
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, name, old, new } = self;
        match (*group, old, new) {
            ("config", Some(old), Some(new)) => write!(f, "config: {name} {old} -> {new}"),
            ("config", None, Some(new)) => write!(f, "config: {name} {new} is new"),
            ("config", Some(old), None) => write!(f, "config: {name} {old} is gone"),
            ("", Some(old), Some(new)) if name == "version" => write!(f, "imp-flow: stage version {old} -> {new}"),
            ("", Some(old), Some(new)) => write!(f, "{name} {old} -> {new}"),
            (group, Some(_), Some(_)) => write!(f, "{group} {name}: content changed"),
            (group, None, _) => write!(f, "{group} {name} is new"),
            (group, _, None) => write!(f, "{group} {name} is gone"),
        }
    }
}
