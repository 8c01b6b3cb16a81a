//! The run of a pipeline: one task that owns the board, the machine's resources and the events, and one task for each running
//! stage. What an end means for other stages is up to the board; how a stage is made, to its step.

use std::{
    collections::{BTreeMap, HashMap},
    time::{Duration, Instant},
};

use imp_stages::contract::{
    event::Event,
    job::{InputFolder, JobSpec},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    MissReason, Planner, RunEvent, SchedulerError, Selection, StageEnd, Summary,
    board::{Board, Done, Effect, Todo},
    resources::Pool,
    step::{self, Retry, Step, StepEnd, StepEvent},
    stop::Stop,
};
use crate::{
    artifacts::Artifacts,
    executor::StopSignal,
    machine::{Grant, Machine},
    store::{Digest, Hit, Lease, Manifest, Provenance, StoreError, source_digest},
};

/// What the machine offers and the user wants.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) machine: Machine,
    /// Most stages that run at once; 0 for as many as the machine has room for.
    pub(crate) jobs: usize,
    /// Whether stages that need no failed one still run.
    pub(crate) keep_going: bool,
    pub(crate) retry: Retry,
    pub(crate) selection: Selection,
    /// What stages find in their environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// A run in progress.
struct Run<'a, 'r> {
    planner: Planner<'a>,
    artifacts: &'a Artifacts,
    options: &'r Options,
    report: &'r mut dyn FnMut(&RunEvent<'_>),
    board: Board<'r>,
    pool: Pool,
    running: HashMap<usize, Running>,
    lease: &'r mut Lease,
    stop: Stop,
    steps: JoinSet<(usize, StepEnd)>,
    say: mpsc::UnboundedSender<(usize, StepEvent)>,
}

/// A running stage.
struct Running {
    reason: MissReason,
    /// `None` while it waits for another run that makes the same artifact.
    grant: Option<Grant>,
}

/// Runs what is not in the cache. Returns when nothing runs any more.
pub(crate) async fn run(
    planner: Planner<'_>,
    artifacts: &Artifacts,
    options: Options,
    lease: &mut Lease,
    report: &mut dyn FnMut(&RunEvent<'_>),
) -> Result<Summary, SchedulerError> {
    let start = Instant::now();
    let (say, mut said) = mpsc::unbounded_channel();
    report(&RunEvent::Started { pipeline: &planner.pipeline.name, stages: planner.pipeline.stages.len() });
    let mut run = Run {
        board: Board::new(planner.graph, &options.selection, options.keep_going),
        pool: Pool::new(options.machine.clone()),
        options: &options,
        planner,
        artifacts,
        report,
        running: HashMap::new(),
        lease,
        stop: Stop::new()?,
        steps: JoinSet::new(),
        say,
    };
    run.settle(run.planner.graph.order().to_vec())?;
    loop {
        run.start_ready()?;
        tokio::select! {
            biased;
            () = run.stop.requested() => {
                let at_once = run.stop.escalate() == StopSignal::Kill;
                (run.report)(&RunEvent::Stopping { at_once });
            }
            Some((stage, said)) = said.recv() => run.said(stage, said),
            ended = run.steps.join_next() => match ended {
                Some(ended) => {
                    let (stage, end) = ended?;
                    // What it said before it ended comes first.
                    while let Ok((stage, said)) = said.try_recv() {
                        run.said(stage, said);
                    }
                    run.ended(stage, end)?;
                }
                None => break,
            },
        }
    }
    Ok(run.summary(start.elapsed()))
}

impl Run<'_, '_> {
    /// Looks up `stages` in the cache, as far as their keys are known, and passes on what becomes of them.
    fn settle(&mut self, stages: Vec<usize>) -> Result<(), StoreError> {
        // Nothing is collected between looking at it and noting that it is in use.
        let _guard = self.planner.store.guard()?;
        let (mut keys, mut trees) = (Vec::new(), Vec::new());
        let effects = self.board.settle(stages, |stage, outputs| {
            let look = self.planner.look(stage, outputs, self.options.selection.forces(stage))?;
            if let Some(look) = &look {
                keys.push(look.key);
                trees.extend(look.hit().map(|hit| hit.output.digest));
            }
            Ok::<_, StoreError>(look)
        })?;
        for effect in effects {
            self.tell(effect);
        }
        self.lease.add(&keys, &trees)
    }

    fn tell(&mut self, effect: Effect) {
        match effect {
            Effect::Done(stage) => self.publish(stage),
            Effect::Skipped { stage, because } => {
                let pipeline = self.planner.pipeline;
                let (stage, because) = (&pipeline.stages[stage].name, &pipeline.stages[because].name);
                (self.report)(&RunEvent::Skipped { stage, because });
            }
        }
    }

    /// Reports a finished stage, links its artifact and notes it in the index.
    fn publish(&mut self, index: usize) {
        let Planner { pipeline, store, index: known, .. } = self.planner;
        let Some(Done { hit, folder, ran }) = self.board.done(index) else { return };
        let stage = &pipeline.stages[index];
        let (name, made) = (&stage.name, &**hit);
        (self.report)(&if *ran {
            RunEvent::Finished { stage: name, index, made }
        } else {
            RunEvent::Hit { stage: name, index, made }
        });
        for (point, name) in &stage.owners {
            known.set_last(&pipeline.id(*point), name, made.key);
            if let Err(error) = self.artifacts.link(&pipeline.points[*point].label, name, made, folder, store) {
                // The artifact is safe in the store: a missing link is no reason to stop.
                let message = format!("no link under {}: {error}", self.artifacts.folder().display());
                (self.report)(&RunEvent::Warning { stage: &stage.name, message: &message });
            }
        }
    }

    /// Starts ready stages, in order, as far as the machine has room.
    fn start_ready(&mut self) -> Result<(), SchedulerError> {
        let pipeline = self.planner.pipeline;
        let mut last = None;
        while let Some(stage) = self.board.next_ready(last).filter(|_| !self.stop.is_requested()) {
            if !self.pool.has_cpus() || (self.options.jobs > 0 && self.working() >= self.options.jobs) {
                break;
            }
            last = Some(stage);
            let Some(grant) = self.pool.take(&pipeline.stages[stage]) else { continue };
            let Some(todo) = self.board.start(stage) else { continue };
            self.start(stage, todo, grant)?;
        }
        Ok(())
    }

    /// Stages that have a part of the machine.
    fn working(&self) -> usize {
        self.running.values().filter(|running| running.grant.is_some()).count()
    }

    fn start(&mut self, stage: usize, todo: Todo, grant: Grant) -> Result<(), SchedulerError> {
        let Todo { manifest, reason } = todo;
        let reason = self.planner.explain(stage, &manifest, reason)?;
        let step = self.step(stage, manifest, grant.clone(), &reason)?;
        self.running.insert(stage, Running { reason, grant: Some(grant) });
        self.steps.spawn(step::run(step, self.planner.store.clone(), self.stop.subscribe(), self.say.clone()));
        Ok(())
    }

    fn step(
        &self,
        index: usize,
        manifest: Manifest,
        grant: Grant,
        reason: &MissReason,
    ) -> Result<Step, SchedulerError> {
        let Planner { pipeline, store, index: known, .. } = self.planner;
        let stage = &pipeline.stages[index];
        let (point, name) = &stage.owners[0];
        let key = manifest.key();
        let job = JobSpec {
            kind: manifest.kind.clone(),
            config: manifest.config.clone(),
            runtime: stage.runtime.clone(),
            inputs: self.inputs(index, &manifest)?,
            sources: stage.sources.clone(),
            work: store.work(key).path().to_path_buf(),
            seed: manifest.seed,
        };
        let provenance = Provenance {
            manifest,
            pipeline: pipeline.id(*point),
            stage: name.clone(),
            reason: reason.to_string(),
            previous: known.last(&pipeline.id(*point), name),
            made_by: env!("CARGO_PKG_VERSION").into(),
        };
        Ok(Step {
            index,
            key,
            forced: *reason == MissReason::Forced,
            job,
            provenance,
            grant,
            retry: self.options.retry,
            environment: self.options.environment.clone(),
        })
    }

    /// The folders of a stage's inputs.
    fn inputs(&self, index: usize, manifest: &Manifest) -> Result<BTreeMap<String, InputFolder>, SchedulerError> {
        let Planner { pipeline, store, .. } = self.planner;
        let folder = |(name, digest): (&String, &Digest)| {
            let from = &pipeline.stages[pipeline.stages[index].inputs[name]];
            let link = self.artifacts.of(pipeline, from);
            let path =
                store.tree_folder(*digest)?.ok_or_else(|| SchedulerError::Vanished { artifact: link.clone() })?;
            // A download from a local folder is a copy: messages should name the original.
            let origin = from.sources.values().next().cloned().unwrap_or(link);
            Ok((name.clone(), InputFolder { path, origin }))
        };
        manifest.inputs.iter().map(folder).collect()
    }

    fn said(&mut self, index: usize, said: StepEvent) {
        let stage = &self.planner.pipeline.stages[index];
        let name = &stage.name;
        match said {
            StepEvent::Waiting => {
                // Others need not wait with it.
                if let Some(grant) = self.running.get_mut(&index).and_then(|running| running.grant.take()) {
                    self.pool.give_back(grant);
                }
                (self.report)(&RunEvent::Waiting { stage: name });
            }
            StepEvent::Running { resumed } => {
                if let Some(Running { reason, .. }) = self.running.get(&index) {
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

    fn ended(&mut self, stage: usize, end: StepEnd) -> Result<(), SchedulerError> {
        if let Some(Running { grant: Some(grant), .. }) = self.running.remove(&stage) {
            self.pool.give_back(grant);
        }
        match end {
            StepEnd::Again => {
                let stages = self.board.again(stage);
                self.settle(stages)?;
            }
            StepEnd::Ran(receipt) if self.changed_sources(stage, &receipt.manifest)? => {
                self.planner.store.remove_receipt(receipt.manifest.key())?;
                let message = "its source changed while it was being read".to_string();
                let help = Some("run the same command again".to_string());
                self.ended(stage, StepEnd::Failed { message, help, log: None, tail: Vec::new() })?;
            }
            StepEnd::Ran(receipt) => self.finished(stage, Box::new(Hit::from(*receipt)), true)?,
            StepEnd::Found(hit) => self.finished(stage, hit, false)?,
            StepEnd::Cancelled => {
                self.board.stopped(stage);
                (self.report)(&RunEvent::Cancelled { stage: &self.planner.pipeline.stages[stage].name });
            }
            StepEnd::Failed { message, help, log, tail } => {
                let name = &self.planner.pipeline.stages[stage].name;
                let help = help.as_deref();
                (self.report)(&RunEvent::Failed { stage: name, message: &message, help, log, tail: &tail });
                for effect in self.board.failed(stage) {
                    self.tell(effect);
                }
            }
        }
        Ok(())
    }

    fn finished(&mut self, stage: usize, hit: Box<Hit>, ran: bool) -> Result<(), StoreError> {
        let folder = self.planner.store.tree_folder(hit.output.digest)?.unwrap_or_default();
        let next = self.board.finished(stage, Done { hit, folder, ran });
        self.publish(stage);
        self.planner.index.save_sometimes();
        self.settle(next)
    }

    /// Whether the user's own files have changed since the stage got its key.
    fn changed_sources(&self, stage: usize, manifest: &Manifest) -> Result<bool, StoreError> {
        for (name, path) in &self.planner.pipeline.stages[stage].sources {
            if manifest.sources.get(name) != Some(&source_digest(path, self.planner.index)?) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn summary(self, took: Duration) -> Summary {
        let order = self.planner.graph.order().iter();
        let summary = Summary {
            pipeline: self.planner.pipeline.name.clone(),
            ending: self.board.ending(),
            seconds: took.as_secs_f64(),
            artifacts: self.artifacts.folder(),
            stages: order.map(|stage| self.stage_end(*stage)).collect(),
        };
        (self.report)(&RunEvent::Ended { summary: &summary });
        summary
    }

    fn stage_end(&self, index: usize) -> StageEnd {
        let stage = &self.planner.pipeline.stages[index];
        let made = self.board.done(index).map(|done| &*done.hit);
        StageEnd {
            name: stage.name.clone(),
            kind: stage.kind.into(),
            state: self.board.end_of(index),
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
