//! The state of every stage in a run, and how the end of one stage changes the states of others. Pure: independent of processes,
//! the store, the machine and the terminal; the caller passes in what the cache has for a stage.
//!
//! A stage is *waiting* until the contents of all its inputs are known. Resolving it then gives it a key, and it becomes *done*
//! (cached), *ready*, *behind* another stage that has the same key, or *left out* by the user. A ready stage starts when the
//! machine has room for it, and ends *done*, *failed* or *stopped*, or goes back to *waiting*. Stages that need a failed
//! stage are *skipped*. After a failure no stage starts, unless the run keeps going.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    path::PathBuf,
};

use super::{
    Ending, MissReason, Selection,
    lookup::{Found, Lookup},
};
use crate::{
    pipeline::Graph,
    store::{Digest, Hit, Manifest, StageState},
};

#[cfg(test)]
mod tests;

/// The state of a stage.
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

/// What starting a ready stage takes: everything that determines its result, and why it is not cached.
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
    /// Whether it ran in this run. Otherwise it was cached.
    pub(super) ran: bool,
}

/// A change that the user should hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// The stage is done: [`Board::done`] returns its artifact.
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
    /// The positions of ready stages in the order of execution.
    ready: BTreeSet<usize>,
    /// The position of each stage in the order of execution.
    position: Vec<usize>,
    /// The stage that makes the artifact of a key.
    makers: HashMap<Digest, usize>,
    /// By maker: the stages with the same key, which wait for it.
    behind: HashMap<usize, Vec<usize>>,
}

impl<'a> Board<'a> {
    /// A board on which all stages are waiting.
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

    /// Resolves `stages`: looks up those whose inputs are known, and then the users of those that are cached. `look_up` gets a
    /// stage and the known outputs, and returns `None` while an input is unknown.
    pub(super) fn resolve<E>(
        &mut self,
        stages: impl IntoIterator<Item = usize>,
        mut look_up: impl FnMut(usize, &[Option<Digest>]) -> Result<Option<Lookup>, E>,
    ) -> Result<Vec<Effect>, E> {
        let mut open: VecDeque<usize> = stages.into_iter().collect();
        let mut effects = Vec::new();
        while let Some(stage) = open.pop_front() {
            if !matches!(self.states[stage], State::Waiting | State::Behind) {
                continue;
            }
            let Some(Lookup { key, manifest, found, .. }) = look_up(stage, &self.outputs)? else { continue };
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

    /// Handles a cache miss. Returns the artifact if another stage of this run has already made it.
    fn missed(&mut self, stage: usize, key: Digest, todo: Todo, effects: &mut Vec<Effect>) -> Option<Done> {
        if !self.selection.includes(stage) {
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

    /// Gives a stage with the same key as `maker` the outcome of `maker`. Returns the artifact if `maker` is done.
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

    /// The next ready stage after `last` in the order of execution. `None` after a failure, unless the run keeps going.
    pub(super) fn next_ready(&self, last: Option<usize>) -> Option<usize> {
        if self.failed && !self.keep_going {
            return None;
        }
        let from = last.map_or(0, |stage| self.position[stage] + 1);
        self.ready.range(from..).next().map(|position| self.graph.order()[*position])
    }

    /// What starting a ready stage takes. `None` if it is not ready.
    pub(super) fn todo(&self, stage: usize) -> Option<&Todo> {
        match &self.states[stage] {
            State::Ready(todo) => Some(todo),
            _ => None,
        }
    }

    /// Marks a ready stage as running. `None` if it is not ready.
    pub(super) fn start(&mut self, stage: usize) -> Option<Todo> {
        if !self.ready.remove(&self.position[stage]) {
            return None;
        }
        match std::mem::replace(&mut self.states[stage], State::Running) {
            State::Ready(todo) => Some(*todo),
            // Never happens: `ready` lists only ready stages.
            _ => None,
        }
    }

    /// Marks a stage as done. Returns the stages to resolve now: its users, and the stages with the same key.
    pub(super) fn finished(&mut self, stage: usize, done: Done) -> Vec<usize> {
        self.outputs[stage] = Some(done.hit.output.digest);
        self.states[stage] = State::Done(done);
        let behind = self.behind.remove(&stage).unwrap_or_default();
        self.graph.users(stage).chain(behind).collect()
    }

    /// Puts a running stage back to waiting. Its key may change, since the user's files may have changed. Returns the stages to
    /// resolve now.
    pub(super) fn requeue(&mut self, stage: usize) -> Vec<usize> {
        self.makers.retain(|_, maker| *maker != stage);
        self.states[stage] = State::Waiting;
        vec![stage]
    }

    /// Puts a finished stage whose artifact was lost back to waiting, with everything that was resolved from it and is not
    /// running or made in this run. Returns the stages to resolve now.
    pub(super) fn reopen(&mut self, stage: usize) -> Vec<usize> {
        let mut reopened = vec![stage];
        let mut open = vec![stage];
        while let Some(from) = open.pop() {
            for user in self.graph.users(from) {
                let resolved = matches!(self.states[user], State::Behind | State::LeftOut | State::Ready(_))
                    || matches!(&self.states[user], State::Done(done) if !done.ran);
                if resolved && !reopened.contains(&user) {
                    reopened.push(user);
                    open.push(user);
                }
            }
        }
        let mut again = Vec::new();
        for stage in reopened {
            self.ready.remove(&self.position[stage]);
            self.makers.retain(|_, maker| *maker != stage);
            self.outputs[stage] = None;
            self.states[stage] = State::Waiting;
            again.push(stage);
            again.extend(self.behind.remove(&stage).unwrap_or_default());
        }
        again
    }

    /// Marks a running stage as stopped on request. The next run can resume it, so nothing is skipped.
    pub(super) fn stopped(&mut self, stage: usize) {
        self.states[stage] = State::Stopped;
    }

    /// Marks a running stage as failed.
    pub(super) fn failed(&mut self, stage: usize) -> Vec<Effect> {
        self.failed = true;
        self.states[stage] = State::Failed;
        let mut effects = Vec::new();
        self.skip_users_of(stage, stage, &mut effects);
        effects
    }

    /// Skips the stages that need `stage` or are behind it, transitively.
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

    /// Whether the stage is to run in this run, and has not ended.
    pub(super) fn is_open(&self, stage: usize) -> bool {
        let may_start = !self.failed || self.keep_going;
        match &self.states[stage] {
            State::Running => true,
            State::Waiting => may_start && self.selection.includes(stage),
            State::Behind | State::Ready(_) => may_start,
            _ => false,
        }
    }

    /// Whether the stage takes the result of another one with the same key.
    pub(super) fn is_behind(&self, stage: usize) -> bool {
        matches!(self.states[stage], State::Behind)
    }

    /// How a stage ended. Call it when no stage is running.
    pub(super) fn end_of(&self, stage: usize) -> StageState {
        match &self.states[stage] {
            State::Done(Done { ran: true, .. }) => StageState::Ran,
            State::Done(Done { ran: false, .. }) => StageState::Cached,
            State::Failed => StageState::Failed,
            State::Stopped | State::Running => StageState::Stopped,
            State::Skipped => StageState::Skipped,
            State::LeftOut => StageState::LeftOut,
            State::Waiting if !self.selection.includes(stage) => StageState::LeftOut,
            State::Waiting | State::Behind | State::Ready(_) => StageState::NotStarted,
        }
    }

    /// How the run ended. Call it when no stage is running.
    pub(super) fn ending(&self) -> Ending {
        let open = |stage: usize| self.selection.includes(stage) && self.done(stage).is_none();
        if self.failed {
            Ending::Failed
        } else if (0..self.states.len()).any(open) {
            Ending::Interrupted
        } else {
            Ending::Done
        }
    }
}
