//! The run of a pipeline: one task that holds all states, and one task for each running stage.
//!
//! A stage is *waiting* until the contents of all its inputs are known. Then it has a key, and is either
//! *done* (cached), *ready*, *behind* another stage that is about to make the same, or *left out* by the person. A ready
//! stage starts when what it needs of the machine is free, and ends *done*, *failed* or *stopped*. What needs a failed
//! stage is *skipped*; after a failure nothing new starts, unless the person wants the rest all the same.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    time::{Duration, Instant},
};

use imp_stages::{event::Event, job::InputFolder};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Ending, MissReason, Planner, RunEvent, Selection, StageEnd, Summary,
    resources::Pool,
    signals::Signals,
    step::{self, Step, StepEnd, StepEvent},
};
use crate::{
    artifacts::Artifacts,
    executor::StopSignal,
    machine::{Grant, Machine},
    store::{Digest, Hit, Lease, Manifest, StoreError},
};

/// What the machine offers and the person wants.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) machine: Machine,
    /// Stages that run at once at most; 0 for as many as the machine has room for.
    pub(crate) jobs: usize,
    /// Whether stages that need no failed one still run.
    pub(crate) keep_going: bool,
    /// How often a stage is tried again after a failure that may be over in a while, and how soon.
    pub(crate) retries: u32,
    pub(crate) retry_pause: Duration,
    pub(crate) selection: Selection,
    /// What stages find in their environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Where a stage stands.
pub(super) enum State {
    Waiting,
    Behind,
    LeftOut,
    Ready {
        manifest: Box<Manifest>,
        reason: MissReason,
    },
    /// Without a grant it waits for another run that makes the same.
    Running {
        reason: MissReason,
        grant: Option<Grant>,
    },
    Done {
        made: Box<Hit>,
        ran: bool,
    },
    Failed,
    Stopped,
    Skipped,
}

/// A run that goes on.
pub(super) struct Run<'a, 'r> {
    pub(super) planner: Planner<'a>,
    pub(super) artifacts: &'a Artifacts,
    pub(super) options: Options,
    pub(super) report: &'r mut dyn FnMut(&RunEvent<'_>),
    pub(super) states: Vec<State>,
    pub(super) outputs: Vec<Option<Digest>>,
    /// Ready stages, by their place in the order of execution.
    pub(super) ready: BTreeSet<usize>,
    pub(super) place: Vec<usize>,
    /// Who makes a key, and who waits behind that stage because it would make the same.
    pub(super) makers: HashMap<Digest, usize>,
    pub(super) behind: HashMap<usize, Vec<usize>>,
    pool: Pool,
    /// Stages that have a part of the machine.
    working: usize,
    pub(super) lease: &'r mut Lease,
    stop: watch::Sender<StopSignal>,
    steps: JoinSet<(usize, StepEnd)>,
    say: mpsc::UnboundedSender<(usize, StepEvent)>,
    failed: bool,
}

/// Runs what is not in the cache. Returns when nothing runs any more.
pub(crate) async fn run(
    planner: Planner<'_>,
    artifacts: &Artifacts,
    options: Options,
    lease: &mut Lease,
    report: &mut dyn FnMut(&RunEvent<'_>),
) -> Result<Summary, StoreError> {
    let start = Instant::now();
    let count = planner.pipeline.stages.len();
    let (say, mut said) = mpsc::unbounded_channel();
    let mut place = vec![0; count];
    for (position, index) in planner.graph.order().iter().enumerate() {
        place[*index] = position;
    }
    let mut run = Run {
        lease,
        planner,
        artifacts,
        report,
        states: (0..count).map(|_| State::Waiting).collect(),
        outputs: vec![None; count],
        ready: BTreeSet::new(),
        place,
        makers: HashMap::new(),
        behind: HashMap::new(),
        pool: Pool::new(options.machine.clone()),
        working: 0,
        options,
        stop: watch::Sender::new(StopSignal::None),
        steps: JoinSet::new(),
        say,
        failed: false,
    };
    (run.report)(&RunEvent::Started { pipeline: &run.planner.pipeline.name, stages: count });
    let mut signals = Signals::new().map_err(StoreError::io(&PathBuf::from("signals")))?;
    run.settle(run.planner.graph.order().iter().copied().collect())?;
    loop {
        run.start_ready()?;
        tokio::select! {
            biased;
            () = signals.any() => run.interrupt(),
            Some((index, said)) = said.recv() => run.said(index, said),
            ended = run.steps.join_next() => match ended {
                Some(Ok((index, end))) => {
                    // What it said before it ended comes first.
                    while let Ok((index, said)) = said.try_recv() {
                        run.said(index, said);
                    }
                    run.ended(index, end)?;
                }
                Some(Err(error)) => return Err(StoreError::Refused { path: "scheduler".into(), what: error.to_string() }),
                None => break,
            },
        }
    }
    Ok(run.summary(start.elapsed()))
}

impl Run<'_, '_> {
    /// Starts ready stages, in order, as far as the machine reaches.
    fn start_ready(&mut self) -> Result<(), StoreError> {
        if (self.failed && !self.options.keep_going) || *self.stop.borrow() != StopSignal::None {
            return Ok(());
        }
        let mut from = 0;
        while let Some(position) = self.ready.range(from..).next().copied() {
            if !self.pool.has_cpus() || (self.options.jobs > 0 && self.working >= self.options.jobs) {
                break;
            }
            from = position + 1;
            let index = self.planner.graph.order()[position];
            let Some(grant) = self.pool.take(&self.planner.pipeline.stages[index]) else { continue };
            self.ready.remove(&position);
            self.working += 1;
            // For a moment it is nothing: its manifest moves out, and its reason and grant in.
            let State::Ready { manifest, reason } = std::mem::replace(&mut self.states[index], State::Waiting) else {
                continue;
            };
            let step = self.step(index, *manifest, grant.clone(), &reason)?;
            self.states[index] = State::Running { reason, grant: Some(grant) };
            self.steps.spawn(step::run(step, self.planner.store.clone(), self.stop.subscribe(), self.say.clone()));
        }
        Ok(())
    }

    fn step(&self, index: usize, manifest: Manifest, grant: Grant, reason: &MissReason) -> Result<Step, StoreError> {
        let Planner { pipeline, store, .. } = self.planner;
        let stage = &pipeline.stages[index];
        let mut inputs = BTreeMap::new();
        for (name, digest) in &manifest.inputs {
            let from = &pipeline.stages[stage.inputs[name]];
            let link = self.artifacts.of(pipeline, from);
            let path = store.tree_folder(*digest)?.ok_or_else(|| StoreError::Refused {
                path: link.clone(),
                what: "this artifact vanished during the run: run the same command again".into(),
            })?;
            // A download from a local folder is a copy: messages should name the original.
            let origin = from.sources.values().next().cloned().unwrap_or(link);
            inputs.insert(name.clone(), InputFolder { path, origin });
        }
        let (point, name) = &stage.owners[0];
        Ok(Step {
            index,
            pipeline: pipeline.id(*point),
            stage: name.clone(),
            forced: *reason == MissReason::Forced,
            reason: reason.to_string(),
            previous: self.planner.index.last(&pipeline.id(*point), name),
            manifest,
            runtime: stage.runtime.clone(),
            inputs,
            sources: stage.sources.clone(),
            grant,
            retries: self.options.retries,
            retry_pause: self.options.retry_pause,
            environment: self.options.environment.clone(),
        })
    }

    fn said(&mut self, index: usize, said: StepEvent) {
        let stage = &self.planner.pipeline.stages[index];
        let name = &stage.name;
        match said {
            StepEvent::Waiting => {
                // Others need not wait with it.
                if let State::Running { grant, .. } = &mut self.states[index]
                    && let Some(grant) = grant.take()
                {
                    self.give_back(grant);
                }
                (self.report)(&RunEvent::Waiting { stage: name });
            }
            StepEvent::Running { resumed } => {
                if let State::Running { reason, .. } = &self.states[index] {
                    (self.report)(&RunEvent::Running { stage: name, kind: stage.kind, reason, resumed });
                }
            }
            StepEvent::Retrying { message, seconds } => {
                (self.report)(&RunEvent::Retrying { stage: name, message: &message, seconds });
            }
            StepEvent::Stage(Event::Progress(progress)) => {
                (self.report)(&RunEvent::Progress { stage: name, progress: &progress });
            }
            StepEvent::Stage(Event::Warning { message }) => {
                (self.report)(&RunEvent::Warning { stage: name, message: &message });
            }
            StepEvent::Stage(_) => {}
        }
    }

    fn ended(&mut self, index: usize, end: StepEnd) -> Result<(), StoreError> {
        let stage = &self.planner.pipeline.stages[index].name;
        if let State::Running { grant: Some(grant), .. } = std::mem::replace(&mut self.states[index], State::Stopped) {
            self.give_back(grant);
        }
        match end {
            StepEnd::Again => {
                // The person's own files may have changed meanwhile: it gets its key anew.
                self.makers.retain(|_, maker| *maker != index);
                self.states[index] = State::Waiting;
                self.settle(VecDeque::from([index]))
            }
            StepEnd::Done { receipt, ran } if ran && self.changed_sources(index, &receipt.manifest)? => {
                self.planner.store.remove_receipt(receipt.manifest.key())?;
                let message = "its source was changed while it was read".to_string();
                let help = Some("run the same command again".to_string());
                self.ended(index, StepEnd::Failed { message, help, log: None, tail: Vec::new() })
            }
            StepEnd::Done { receipt, ran } => {
                let made = Hit::from(*receipt);
                let folder = self.planner.store.tree_folder(made.output.digest)?.unwrap_or_default();
                (self.report)(&if ran {
                    RunEvent::Finished { stage, index, made: &made }
                } else {
                    RunEvent::Hit { stage, index, made: &made }
                });
                self.done(index, made, &folder, ran);
                self.planner.index.save_sometimes();
                let behind = self.behind.remove(&index).unwrap_or_default();
                self.settle(self.planner.graph.users(index).chain(behind).collect())
            }
            StepEnd::Cancelled => {
                (self.report)(&RunEvent::Cancelled { stage });
                Ok(())
            }
            StepEnd::Failed { message, help, log, tail } => {
                self.failed = true;
                self.states[index] = State::Failed;
                let help = help.as_deref();
                (self.report)(&RunEvent::Failed { stage, message: &message, help, log, tail: &tail });
                self.skip_users_of(index);
                Ok(())
            }
        }
    }

    fn give_back(&mut self, grant: Grant) {
        self.pool.give_back(grant);
        self.working -= 1;
    }

    /// The first time politely, the second time not.
    fn interrupt(&mut self) {
        let stop = if *self.stop.borrow() == StopSignal::None { StopSignal::Stop } else { StopSignal::Kill };
        (self.report)(&RunEvent::Stopping { at_once: stop == StopSignal::Kill });
        self.stop.send_replace(stop);
    }

    fn summary(self, took: Duration) -> Summary {
        let pipeline = self.planner.pipeline;
        let finished = |state: &State| matches!(state, State::Done { .. } | State::LeftOut);
        let wanted = |index: &usize| self.options.selection.wants(*index);
        let ending = if self.failed {
            Ending::Failed
        } else if (0..self.states.len()).filter(wanted).all(|index| finished(&self.states[index])) {
            Ending::Done
        } else {
            Ending::Interrupted
        };
        let order = self.planner.graph.order().iter();
        let stages = order.map(|index| self.stage_end(*index)).collect();
        let summary = Summary {
            pipeline: pipeline.name.clone(),
            ending,
            seconds: took.as_secs_f64(),
            artifacts: self.artifacts.folder(),
            stages,
        };
        (self.report)(&RunEvent::Ended { summary: &summary });
        summary
    }

    fn stage_end(&self, index: usize) -> StageEnd {
        let stage = &self.planner.pipeline.stages[index];
        let state = match &self.states[index] {
            State::Done { ran: true, .. } => "ran",
            State::Done { ran: false, .. } => "cached",
            State::Failed => "failed",
            State::Stopped | State::Running { .. } => "stopped",
            State::Skipped => "skipped",
            State::Waiting | State::LeftOut if !self.options.selection.wants(index) => "left out",
            State::Waiting | State::Behind | State::Ready { .. } | State::LeftOut => "not started",
        };
        let made = if let State::Done { made, .. } = &self.states[index] { Some(made) } else { None };
        StageEnd {
            name: stage.name.clone(),
            kind: stage.kind.into(),
            state: state.into(),
            seconds: made.map(|made| made.seconds),
            peak_memory: made.and_then(|made| made.peak_memory),
            key: made.map(|made| made.key),
            output: made.map(|made| made.output),
            link: made.map(|_| self.artifacts.of(self.planner.pipeline, stage)),
            results: made.map(|made| made.results.clone()).unwrap_or_default(),
            index,
        }
    }
}
