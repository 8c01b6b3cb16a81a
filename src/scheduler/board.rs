//! Where every stage of a run stands, and what the end of one means for the others. Pure: independent of processes, the store,
//! the machine and the terminal; what the cache has for a stage is passed in.
//!
//! A stage is *waiting* until the contents of all its inputs are known. Then it has a key, and is *done* (cached), *ready*,
//! *behind* another stage that will make the same artifact, or *left out* by the user. A ready stage starts when the machine has
//! room for it and ends *done*, *failed* or *stopped*, or is settled *again*. What needs a failed stage is *skipped*; after a
//! failure nothing new starts, unless the user wants the rest nevertheless.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::PathBuf,
};

use super::{
    Ending, MissReason, Selection,
    found::{Found, Look},
};
use crate::{
    pipeline::Graph,
    store::{Digest, Hit, Manifest, StageState},
};

#[cfg(test)]
mod tests;

/// Where a stage stands.
#[derive(Debug)]
enum State {
    Waiting,
    Behind,
    LeftOut,
    Ready(Box<Todo>),
    Running,
    Done(Done),
    Failed,
    Stopped,
    Skipped,
}

/// A ready stage: what decides its result, and why it is not cached.
#[derive(Debug)]
pub(super) struct Todo {
    pub(super) manifest: Manifest,
    pub(super) reason: MissReason,
}

/// A finished stage.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) hit: Box<Hit>,
    /// The folder of its tree.
    pub(super) folder: PathBuf,
    /// Whether it ran; else it was in the cache.
    pub(super) ran: bool,
}

/// What has become of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// [`Board::done`] has its artifact.
    Done(usize),
    Skipped {
        stage: usize,
        because: usize,
    },
}

/// The states of all stages, by their index in the pipeline.
pub(super) struct Board<'a> {
    graph: &'a Graph,
    selection: &'a Selection,
    /// Whether stages still start after a failure.
    keep_going: bool,
    failed: bool,
    states: Vec<State>,
    outputs: Vec<Option<Digest>>,
    /// Ready stages, by their position in the order of execution.
    ready: BTreeSet<usize>,
    position: Vec<usize>,
    /// The stage that makes a key.
    makers: HashMap<Digest, usize>,
    /// By maker: the stages that would make the same and wait for it.
    behind: HashMap<usize, Vec<usize>>,
}

impl<'a> Board<'a> {
    /// All stages waiting.
    pub(super) fn new(graph: &'a Graph, selection: &'a Selection, keep_going: bool) -> Self {
        let count = graph.order().len();
        let mut position = vec![0; count];
        for (at, stage) in graph.order().iter().enumerate() {
            position[*stage] = at;
        }
        Self {
            graph,
            selection,
            keep_going,
            failed: false,
            states: (0..count).map(|_| State::Waiting).collect(),
            outputs: vec![None; count],
            ready: BTreeSet::new(),
            position,
            makers: HashMap::new(),
            behind: HashMap::new(),
        }
    }

    /// Moves each waiting stage of `stages` on if the contents of its inputs are known, and those that depend on the stages that
    /// turn out to be cached. `look` is given a stage and the known outputs; it returns `None` while an input is unknown.
    pub(super) fn settle<E>(
        &mut self,
        stages: impl IntoIterator<Item = usize>,
        mut look: impl FnMut(usize, &[Option<Digest>]) -> Result<Option<Look>, E>,
    ) -> Result<Vec<Effect>, E> {
        let mut open: VecDeque<usize> = stages.into_iter().collect();
        let mut effects = Vec::new();
        while let Some(stage) = open.pop_front() {
            if !matches!(self.states[stage], State::Waiting | State::Behind) {
                continue;
            }
            let Some(Look { key, manifest, found }) = look(stage, &self.outputs)? else { continue };
            let done = match found {
                Found::Hit(hit, folder) => Some(Done { hit, folder, ran: false }),
                Found::Miss(reason) => self.missed(stage, key, Todo { manifest, reason }, &mut effects),
            };
            if let Some(done) = done {
                effects.push(Effect::Done(stage));
                open.extend(self.finished(stage, done));
            }
        }
        Ok(effects)
    }

    /// A stage is not cached. Returns its artifact if another stage of this run has made it.
    fn missed(&mut self, stage: usize, key: Digest, todo: Todo, effects: &mut Vec<Effect>) -> Option<Done> {
        if !self.selection.wants(stage) {
            self.states[stage] = State::LeftOut;
            return None;
        }
        if let Some(maker) = self.makers.get(&key).copied() {
            return self.follow(stage, maker, effects);
        }
        self.makers.insert(key, stage);
        self.ready.insert(self.position[stage]);
        self.states[stage] = State::Ready(Box::new(todo));
        None
    }

    /// A stage that would make the same artifact as `maker` shares its fate. Returns the artifact if it is there already.
    fn follow(&mut self, stage: usize, maker: usize, effects: &mut Vec<Effect>) -> Option<Done> {
        match &self.states[maker] {
            State::Done(done) => return Some(Done { ran: false, ..done.clone() }),
            State::Failed => {
                self.states[stage] = State::Skipped;
                effects.push(Effect::Skipped { stage, because: maker });
                self.skip_users_of(stage, maker, effects);
            }
            _ => {
                self.states[stage] = State::Behind;
                self.behind.entry(maker).or_default().push(stage);
            }
        }
        None
    }

    /// The first ready stage in the order of execution, after the stage `last`. After a failure none, unless the run keeps going.
    pub(super) fn next_ready(&self, last: Option<usize>) -> Option<usize> {
        if self.failed && !self.keep_going {
            return None;
        }
        let from = last.map_or(0, |stage| self.position[stage] + 1);
        self.ready.range(from..).next().map(|position| self.graph.order()[*position])
    }

    /// A ready stage starts.
    pub(super) fn start(&mut self, stage: usize) -> Option<Todo> {
        if !self.ready.remove(&self.position[stage]) {
            return None;
        }
        match std::mem::replace(&mut self.states[stage], State::Running) {
            State::Ready(todo) => Some(*todo),
            // `ready` has ready stages only.
            _ => None,
        }
    }

    /// A stage is done. Returns the stages to settle now: its users, and those that would make the same.
    pub(super) fn finished(&mut self, stage: usize, done: Done) -> Vec<usize> {
        self.outputs[stage] = Some(done.hit.output.digest);
        self.states[stage] = State::Done(done);
        let behind = self.behind.remove(&stage).unwrap_or_default();
        self.graph.users(stage).chain(behind).collect()
    }

    /// A running stage has to be settled anew, as the user's own files may have changed meanwhile. Returns the stages to settle
    /// now.
    pub(super) fn again(&mut self, stage: usize) -> Vec<usize> {
        self.makers.retain(|_, maker| *maker != stage);
        self.states[stage] = State::Waiting;
        vec![stage]
    }

    /// A running stage was stopped on request. It may be resumed by the next run, so nothing is skipped.
    pub(super) fn stopped(&mut self, stage: usize) {
        self.states[stage] = State::Stopped;
    }

    /// A running stage failed.
    pub(super) fn failed(&mut self, stage: usize) -> Vec<Effect> {
        self.failed = true;
        self.states[stage] = State::Failed;
        let mut effects = Vec::new();
        self.skip_users_of(stage, stage, &mut effects);
        effects
    }

    /// Skips what needs `stage` and what waits behind it, transitively.
    fn skip_users_of(&mut self, stage: usize, because: usize, effects: &mut Vec<Effect>) {
        let mut open = vec![stage];
        while let Some(stage) = open.pop() {
            let behind = self.behind.remove(&stage).unwrap_or_default();
            for user in self.graph.users(stage).chain(behind) {
                if matches!(self.states[user], State::Waiting | State::Behind) {
                    self.states[user] = State::Skipped;
                    effects.push(Effect::Skipped { stage: user, because });
                    open.push(user);
                }
            }
        }
    }

    /// The artifact of a finished stage.
    pub(super) fn done(&self, stage: usize) -> Option<&Done> {
        match &self.states[stage] {
            State::Done(done) => Some(done),
            _ => None,
        }
    }

    /// How a stage ended, when nothing runs any more.
    pub(super) fn end_of(&self, stage: usize) -> StageState {
        match &self.states[stage] {
            State::Done(Done { ran: true, .. }) => StageState::Ran,
            State::Done(Done { ran: false, .. }) => StageState::Cached,
            State::Failed => StageState::Failed,
            State::Stopped | State::Running => StageState::Stopped,
            State::Skipped => StageState::Skipped,
            State::LeftOut => StageState::LeftOut,
            State::Waiting if !self.selection.wants(stage) => StageState::LeftOut,
            State::Waiting | State::Behind | State::Ready(_) => StageState::NotStarted,
        }
    }

    /// How the run ended, when nothing runs any more.
    pub(super) fn ending(&self) -> Ending {
        let open = |stage: usize| self.selection.wants(stage) && self.done(stage).is_none();
        if self.failed {
            Ending::Failed
        } else if (0..self.states.len()).any(open) {
            Ending::Interrupted
        } else {
            Ending::Done
        }
    }
}
