//! What would run, and why. Reads the store and changes nothing.

use std::collections::{BTreeMap, HashSet};

use super::{
    MissReason, Selection,
    lookup::{Found, Lookup},
};
use crate::{
    pipeline::{Graph, Pipeline, StageDecl},
    remote::{Remote, Want},
    store::{Change, Digest, Index, Manifest, Receipt, Store, StoreError, source_digest},
};

/// What is known about a stage before anything runs.
#[derive(Debug, Clone)]
pub(crate) enum Verdict {
    /// Its artifact is in the cache.
    Hit { key: Digest },
    /// Its artifact is in the remote cache; `bytes` of it are missing here.
    Remote { key: Digest, bytes: u64, manifest: Box<Manifest> },
    /// It must run.
    Run { key: Digest, reason: MissReason },
    /// Its input `stages` must run first. If they produce the same bytes as last time and `changes` is empty, it is cached.
    After { stages: Vec<usize>, changes: Vec<Change> },
}

/// How a message on a changed artifact begins.
pub(super) const CHANGED: &str = "its artifact was changed";

/// Compares a pipeline with the store.
pub(crate) struct Planner<'a> {
    pub(crate) pipeline: &'a Pipeline,
    pub(crate) graph: &'a Graph,
    pub(crate) store: &'a Store,
    pub(crate) index: &'a Index,
    /// Asked for what is not in the store, if there is one.
    pub(crate) remote: Option<&'a Remote>,
}

impl Planner<'_> {
    /// The verdict on every stage, in the order of execution.
    pub(crate) fn plan(&self, selection: &Selection) -> Result<Vec<(usize, Verdict)>, StoreError> {
        let mut outputs: Vec<Option<Digest>> = vec![None; self.pipeline.stages.len()];
        let mut verdicts = Vec::with_capacity(outputs.len());
        // What several stages share is pulled once.
        let mut pulled = HashSet::new();
        for &index in self.graph.order() {
            let lookup = self.look_up(index, &outputs, selection.forces(index))?;
            if let Some(mended) = lookup.as_ref().and_then(|lookup| lookup.mended.as_ref()) {
                let stage = &self.pipeline.stages[index].name;
                tracing::warn!("{stage}: {CHANGED}: {mended}");
            }
            let verdict = match lookup {
                Some(Lookup { key, found: Found::Hit(hit, _), .. }) => {
                    outputs[index] = Some(hit.output.digest);
                    Verdict::Hit { key }
                }
                Some(Lookup { key, manifest, found: Found::Miss(reason), .. }) => {
                    // A stage that is not selected is not taken from there, either.
                    let is_asked = selection.includes(index) && reason != MissReason::Forced;
                    match is_asked.then(|| self.remote_result(index, key, &manifest, &mut pulled)).flatten() {
                        Some((output, bytes)) => {
                            outputs[index] = Some(output);
                            Verdict::Remote { key, bytes, manifest: Box::new(manifest) }
                        }
                        None => Verdict::Run { key, reason: self.explain(index, &manifest, reason)? },
                    }
                }
                None => self.after(index, &outputs)?,
            };
            verdicts.push((index, verdict));
        }
        Ok(verdicts)
    }

    /// The output that the remote cache has under a key, and the bytes of it that are missing here and not `pulled` for an earlier
    /// stage.
    fn remote_result(
        &self,
        index: usize,
        key: Digest,
        manifest: &Manifest,
        pulled: &mut HashSet<Digest>,
    ) -> Option<(Digest, u64)> {
        let remote = self.remote.filter(|remote| remote.has_answers())?;
        let offer = remote.offer(self.store, Want { key, manifest: Some(manifest) });
        let offer = offer.unwrap_or_else(|trouble| {
            remote.note(&trouble);
            None
        });
        if let Some(warning) = remote.take_warning() {
            tracing::warn!("{}: {warning}", self.pipeline.stages[index].name);
        }
        let offer = offer?;
        let missing = offer.missing.iter().filter(|need| pulled.insert(need.digest));
        Some((offer.receipt.output.digest, missing.filter_map(|need| need.size).sum()))
    }

    /// Looks up the artifact of a stage. `None` while the content of an input is unknown.
    pub(super) fn look_up(
        &self,
        index: usize,
        outputs: &[Option<Digest>],
        forced: bool,
    ) -> Result<Option<Lookup>, StoreError> {
        let stage = &self.pipeline.stages[index];
        let mut inputs = BTreeMap::new();
        for (name, from) in &stage.inputs {
            let Some(digest) = outputs[*from] else { return Ok(None) };
            inputs.insert(name.clone(), digest);
        }
        let manifest = self.manifest_of(stage, inputs)?;
        let key = manifest.key();
        let (found, mended) = Found::look_up(self.store, Some(self.index), key, forced)?;
        Ok(Some(Lookup { key, manifest, found, mended }))
    }

    /// Names what has changed since the stage's last receipt, if it has one.
    pub(super) fn explain(
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
        // Assume that unknown inputs stay the same, so that only the stage's own changes are listed.
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

    /// The receipt of a stage from the last time that it ran or was found in the cache.
    pub(crate) fn last_receipt(&self, index: usize) -> Result<Option<Receipt>, StoreError> {
        let (point, name) = &self.pipeline.stages[index].owners[0];
        let Some(key) = self.index.last(&self.pipeline.id(*point), name) else { return Ok(None) };
        self.store.receipt(key)
    }
}
