//! What becomes of stages once more is known: keys, verdicts, and what one stage's end means for others. Starts nothing.

use std::{collections::VecDeque, path::Path};

use super::{
    MissReason, Planner, RunEvent,
    run::{Run, State},
};
use crate::store::{Hit, Manifest, StoreError, source_digest};

impl Run<'_, '_> {
    /// Gives a key to each of `candidates` whose inputs are all known, and a verdict with it.
    /// What turns out to be cached makes its users candidates.
    pub(super) fn settle(&mut self, mut candidates: VecDeque<usize>) -> Result<(), StoreError> {
        // Nothing is thrown away between looking at it and saying that it is in use.
        let _guard = self.planner.store.guard()?;
        let (mut keys, mut trees) = (Vec::new(), Vec::new());
        while let Some(index) = candidates.pop_front() {
            if !matches!(self.states[index], State::Waiting | State::Behind) {
                continue;
            }
            let Some(manifest) = self.planner.manifest(index, &self.outputs)? else { continue };
            let key = manifest.key();
            keys.push(key);
            let found = if self.options.selection.forces(index) {
                Err(MissReason::Forced)
            } else {
                self.planner.look_up(key)?
            };
            match found {
                Ok((made, folder)) => {
                    trees.push(made.output.digest);
                    let stage = &self.planner.pipeline.stages[index].name;
                    (self.report)(&RunEvent::Hit { stage, index, made: &made });
                    self.done(index, made, &folder, false);
                    candidates.extend(self.planner.graph.users(index));
                }
                Err(_) if !self.options.selection.wants(index) => self.states[index] = State::LeftOut,
                Err(reason) => {
                    if let Some(maker) = self.makers.get(&key).copied().filter(|maker| *maker != index) {
                        self.follow(index, maker)?;
                        if matches!(self.states[index], State::Done { .. }) {
                            candidates.extend(self.planner.graph.users(index));
                        }
                        continue;
                    }
                    let reason = self.planner.explain(index, &manifest, reason)?;
                    self.makers.insert(key, index);
                    self.ready.insert(self.place[index]);
                    self.states[index] = State::Ready { manifest: Box::new(manifest), reason };
                }
            }
        }
        self.lease.add(&keys, &trees)
    }

    /// A stage that would make the same as `maker` has its fate.
    fn follow(&mut self, index: usize, maker: usize) -> Result<(), StoreError> {
        let Planner { pipeline, store, .. } = self.planner;
        match &self.states[maker] {
            State::Done { made, .. } => {
                let made = Hit::clone(made);
                let folder = store.tree_folder(made.output.digest)?.unwrap_or_default();
                (self.report)(&RunEvent::Hit { stage: &pipeline.stages[index].name, index, made: &made });
                self.done(index, made, &folder, false);
            }
            State::Failed | State::Skipped => {
                self.states[index] = State::Skipped;
                let because = &pipeline.stages[maker].name;
                (self.report)(&RunEvent::Skipped { stage: &pipeline.stages[index].name, because });
                self.skip_users_of(index);
            }
            _ => {
                self.states[index] = State::Behind;
                self.behind.entry(maker).or_default().push(index);
            }
        }
        Ok(())
    }

    /// Whether the person's own files are others than when the stage got its key.
    pub(super) fn changed_sources(&self, index: usize, manifest: &Manifest) -> Result<bool, StoreError> {
        let sources = &self.planner.pipeline.stages[index].sources;
        for (name, path) in sources {
            if manifest.sources.get(name) != Some(&source_digest(path, self.planner.index)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn done(&mut self, index: usize, made: Hit, folder: &Path, ran: bool) {
        let Planner { pipeline, store, index: known, .. } = self.planner;
        let stage = &pipeline.stages[index];
        for (point, name) in &stage.owners {
            known.set_last(&pipeline.id(*point), name, made.key);
            if let Err(error) = self.artifacts.link(&pipeline.points[*point].label, name, &made, folder, store) {
                // The artifact is safe in the store: a missing link is no reason to stop.
                let message = format!("no link under {}: {error}", self.artifacts.folder().display());
                (self.report)(&RunEvent::Warning { stage: &stage.name, message: &message });
            }
        }
        self.outputs[index] = Some(made.output.digest);
        self.states[index] = State::Done { made: Box::new(made), ran };
    }

    pub(super) fn skip_users_of(&mut self, failed: usize) {
        let pipeline = self.planner.pipeline;
        let mut open = vec![failed];
        while let Some(index) = open.pop() {
            let behind = self.behind.remove(&index).unwrap_or_default();
            for user in self.planner.graph.users(index).chain(behind).collect::<Vec<_>>() {
                if matches!(self.states[user], State::Waiting | State::Behind) {
                    self.states[user] = State::Skipped;
                    (self.report)(&RunEvent::Skipped {
                        stage: &pipeline.stages[user].name,
                        because: &pipeline.stages[failed].name,
                    });
                    open.push(user);
                }
            }
        }
    }
}
