//! The run of a pipeline: one task that holds all states, and one task for each running stage.
//!
//! A stage is *waiting* until the contents of all its inputs are known. Then it has a key, and is either
//! *done* (cached) or *ready*. A ready stage starts when its CPUs are free, and ends *done*, *failed* or
//! *stopped*. What needs a failed stage is *skipped*; after a failure nothing new starts.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::{Duration, Instant},
};

use imp_stages::{event::Event, job::InputFolder};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Ending, MissReason, Planner, RunEvent, StageEnd, Summary,
    step::{self, Said, Step, StepEnd},
};
use crate::{
    artifacts::Artifacts,
    executor::Wish,
    store::{Digest, Manifest, Receipt, StoreError},
};

/// What the machine offers.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// CPUs to share out.
    pub(crate) cpus: usize,
    /// What stages find in their environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Where a stage stands.
enum State {
    Waiting,
    Ready { manifest: Box<Manifest>, reason: MissReason },
    Running { reason: MissReason, cpus: usize },
    Done { receipt: Box<Receipt>, ran: bool },
    Failed,
    Stopped,
    Skipped,
}

struct Run<'a, 'r> {
    planner: Planner<'a>,
    artifacts: &'a Artifacts,
    report: &'r mut dyn FnMut(&RunEvent<'_>),
    states: Vec<State>,
    outputs: Vec<Option<Digest>>,
    free_cpus: usize,
    all_cpus: usize,
    environment: Vec<(&'static str, String)>,
    wish: watch::Sender<Wish>,
    steps: JoinSet<(usize, StepEnd)>,
    say: mpsc::UnboundedSender<(usize, Said)>,
    failed: bool,
}

/// Runs what is not in the cache. Returns when nothing runs any more.
pub(crate) async fn run(
    planner: Planner<'_>,
    artifacts: &Artifacts,
    options: Options,
    report: &mut dyn FnMut(&RunEvent<'_>),
) -> Result<Summary, StoreError> {
    let start = Instant::now();
    let count = planner.pipeline.stages.len();
    let (say, mut said) = mpsc::unbounded_channel();
    let mut run = Run {
        planner,
        artifacts,
        report,
        states: (0..count).map(|_| State::Waiting).collect(),
        outputs: vec![None; count],
        free_cpus: options.cpus,
        all_cpus: options.cpus,
        environment: options.environment,
        wish: watch::Sender::new(Wish::GoOn),
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
    /// Gives a key to each of `candidates` whose inputs are all known, and a verdict with it.
    /// What turns out to be cached makes its users candidates.
    fn settle(&mut self, mut candidates: VecDeque<usize>) -> Result<(), StoreError> {
        while let Some(index) = candidates.pop_front() {
            if !matches!(self.states[index], State::Waiting) {
                continue;
            }
            let Some(manifest) = self.planner.manifest(index, &self.outputs)? else { continue };
            match self.planner.look_up(&manifest)? {
                Ok(receipt) => {
                    let stage = &self.planner.pipeline.stages[index].name;
                    (self.report)(&RunEvent::Hit { stage, output: receipt.output });
                    self.done(index, receipt, false);
                    candidates.extend(self.planner.graph.users(index));
                }
                Err(reason) => {
                    let reason = self.planner.explain(index, &manifest, reason)?;
                    self.states[index] = State::Ready { manifest: Box::new(manifest), reason };
                }
            }
        }
        Ok(())
    }

    /// Starts ready stages, in order, as far as CPUs reach.
    fn start_ready(&mut self) -> Result<(), StoreError> {
        if self.failed || *self.wish.borrow() != Wish::GoOn {
            return Ok(());
        }
        for position in 0..self.planner.graph.order().len() {
            let index = self.planner.graph.order()[position];
            let wanted = self.planner.pipeline.stages[index].runtime.cpus;
            let cpus = if wanted == 0 { self.all_cpus } else { wanted.min(self.all_cpus) };
            if cpus > self.free_cpus || !matches!(self.states[index], State::Ready { .. }) {
                continue;
            }
            let State::Ready { manifest, reason } =
                std::mem::replace(&mut self.states[index], State::Running { reason: MissReason::New, cpus })
            else {
                continue;
            };
            self.states[index] = State::Running { reason, cpus };
            self.free_cpus -= cpus;
            let step = self.step(index, *manifest, cpus)?;
            self.steps.spawn(step::run(step, self.planner.store.clone(), self.wish.subscribe(), self.say.clone()));
        }
        Ok(())
    }

    fn step(&self, index: usize, manifest: Manifest, cpus: usize) -> Result<Step, StoreError> {
        let stage = &self.planner.pipeline.stages[index];
        let mut inputs = BTreeMap::new();
        for (name, digest) in &manifest.inputs {
            let from = &stage.inputs[name];
            let path = self.planner.store.tree_folder(*digest)?.ok_or_else(|| StoreError::Refused {
                path: self.artifacts.stage(from),
                what: "this artifact vanished during the run: run the same command again".into(),
            })?;
            // A download from a local folder is a copy: messages should name the original.
            let origin = self
                .planner
                .pipeline
                .position(from)
                .and_then(|from| self.planner.pipeline.stages[from].sources.values().next().cloned())
                .unwrap_or_else(|| self.artifacts.stage(from));
            inputs.insert(name.clone(), InputFolder { path, origin });
        }
        Ok(Step {
            index,
            pipeline: self.planner.pipeline.name.clone(),
            stage: stage.name.clone(),
            manifest,
            runtime: stage.runtime.clone(),
            inputs,
            sources: stage.sources.clone(),
            cpus,
            environment: self.environment.clone(),
        })
    }

    fn said(&mut self, index: usize, said: Said) {
        let pipeline = self.planner.pipeline;
        let stage = &pipeline.stages[index];
        match said {
            Said::Waiting => (self.report)(&RunEvent::Waiting { stage: &stage.name }),
            Said::Running { resumed } => {
                if let State::Running { reason, .. } = &self.states[index] {
                    (self.report)(&RunEvent::Running { stage: &stage.name, kind: stage.kind, reason, resumed });
                }
            }
            Said::Stage(Event::Progress(progress)) => {
                (self.report)(&RunEvent::Progress { stage: &stage.name, progress: &progress });
            }
            Said::Stage(Event::Warning { message }) => {
                (self.report)(&RunEvent::Warning { stage: &stage.name, message: &message });
            }
            Said::Stage(_) => {}
        }
    }

    fn ended(&mut self, index: usize, end: StepEnd) -> Result<(), StoreError> {
        let stage = &self.planner.pipeline.stages[index].name;
        if let State::Running { cpus, .. } = self.states[index] {
            self.free_cpus += cpus;
        }
        match end {
            StepEnd::Done { receipt, ran } => {
                let (output, seconds) = (receipt.output, receipt.timing.seconds);
                self.done(index, *receipt, ran);
                (self.report)(&if ran {
                    RunEvent::Finished { stage, seconds, output }
                } else {
                    RunEvent::Hit { stage, output }
                });
                self.settle(self.planner.graph.users(index).collect())
            }
            StepEnd::Cancelled => {
                self.states[index] = State::Stopped;
                (self.report)(&RunEvent::Cancelled { stage });
                Ok(())
            }
            StepEnd::Failed { message, help, log } => {
                self.failed = true;
                self.states[index] = State::Failed;
                (self.report)(&RunEvent::Failed { stage, message: &message, help: help.as_deref(), log });
                self.skip_users_of(index);
                Ok(())
            }
        }
    }

    fn done(&mut self, index: usize, receipt: Receipt, ran: bool) {
        let stage = &self.planner.pipeline.stages[index];
        let key = receipt.manifest.key();
        self.planner.index.set_last(&self.planner.pipeline.name, &stage.name, key);
        if let Err(error) = self.artifacts.link(&stage.name, &receipt, self.planner.store) {
            // The artifact is safe in the store: a missing link is no reason to stop.
            (self.report)(&RunEvent::Warning {
                stage: &stage.name,
                message: &format!("no link under artifacts: {error}"),
            });
        }
        if ran {
            self.planner.index.save();
        }
        self.outputs[index] = Some(receipt.output.digest);
        self.states[index] = State::Done { receipt: Box::new(receipt), ran };
    }

    fn skip_users_of(&mut self, failed: usize) {
        let pipeline = self.planner.pipeline;
        let mut open = vec![failed];
        while let Some(index) = open.pop() {
            for user in self.planner.graph.users(index).collect::<Vec<_>>() {
                if matches!(self.states[user], State::Waiting) {
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

    /// The first time politely, the second time not.
    fn interrupt(&mut self) {
        let wish = if *self.wish.borrow() == Wish::GoOn { Wish::Stop } else { Wish::Kill };
        (self.report)(&RunEvent::Stopping { at_once: wish == Wish::Kill });
        self.wish.send_replace(wish);
    }

    fn summary(self, took: Duration) -> Summary {
        let pipeline = self.planner.pipeline;
        let ending = if self.failed {
            Ending::Failed
        } else if self.states.iter().all(|state| matches!(state, State::Done { .. })) {
            Ending::Done
        } else {
            Ending::Interrupted
        };
        let stages = self
            .planner
            .graph
            .order()
            .iter()
            .map(|index| stage_end(&pipeline.stages[*index], &self.states[*index]))
            .collect();
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
}

fn stage_end(stage: &crate::pipeline::StageDecl, state: &State) -> StageEnd {
    let mut end = StageEnd {
        name: stage.name.clone(),
        kind: stage.kind,
        state: match state {
            State::Done { ran: true, .. } => "ran",
            State::Done { ran: false, .. } => "cached",
            State::Failed => "failed",
            State::Stopped | State::Running { .. } => "stopped",
            State::Skipped => "skipped",
            State::Waiting | State::Ready { .. } => "not started",
        },
        seconds: None,
        peak_memory: None,
        key: None,
        output: None,
        results: BTreeMap::new(),
    };
    if let State::Done { receipt, .. } = state {
        end.seconds = Some(receipt.timing.seconds);
        end.peak_memory = receipt.peak_memory;
        end.key = Some(receipt.manifest.key().hex());
        end.output = Some(receipt.output);
        end.results.clone_from(&receipt.results);
    }
    end
}

/// The signals that ask for an end: Ctrl-C, a batch system's SIGTERM, a closed terminal.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?]))
    }

    async fn any(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
