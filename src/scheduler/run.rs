//! Runs a pipeline: one task owns the board, the machine's resources and the events, and each running stage has a task of its
//! own. The board decides what the end of a stage means for others; `step.rs` runs a single stage.

mod ending;
mod exchange;
mod outlook;
mod work;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
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
    plan::CHANGED,
    remote::Supply,
    resources::Pool,
    step::{self, Retry, Step, StepEnd, StepEvent},
    stop::Stop,
};
use crate::{
    artifacts::Artifacts,
    executor::{Executors, Task},
    machine::{Allocation, Machine},
    remote::Remote,
    store::{Digest, Lease, Manifest, Provenance, StoreError},
};

/// The options of a run: the machine's resources and the user's choices.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) machine: Machine,
    /// The most stages to run at once; 0 for as many as the machine has room for.
    pub(crate) jobs: usize,
    /// Whether stages that don't need a failed stage still run after a failure.
    pub(crate) keep_going: bool,
    pub(crate) retry: Retry,
    pub(crate) selection: Selection,
    /// Environment variables for the processes of stages.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) executors: Executors,
    /// The cache that other machines share, if there is one.
    pub(crate) remote: Option<Arc<Remote>>,
    /// Whether anybody is to be told how long it will still take.
    pub(crate) outlook: bool,
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
    /// Stages that were made again because their artifact was lost.
    reopened: HashSet<usize>,
    /// Whether all stages run on this machine.
    all_here: bool,
    lease: &'r mut Lease,
    /// The exchange with the remote cache.
    supply: Option<Supply>,
    stop: Stop,
    steps: JoinSet<(usize, StepEnd)>,
    clock: outlook::Clock,
    /// Passes the events of steps to the main task.
    events: mpsc::UnboundedSender<(usize, StepEvent)>,
}

/// A running stage.
struct Running {
    reason: MissReason,
    /// `None` while it waits for another run that is making the same artifact, and while the remote cache is asked for it.
    allocation: Option<Allocation>,
    /// Whether the remote cache is asked for it.
    is_asked: bool,
}

/// Runs the stages that are not cached. Returns when no stage is running and none can start.
pub(crate) async fn run(
    planner: Planner<'_>,
    artifacts: &Artifacts,
    options: Options,
    lease: &mut Lease,
    report: &mut dyn FnMut(&RunEvent<'_>),
) -> Result<Summary, SchedulerError> {
    let start = Instant::now();
    let (events, mut received) = mpsc::unbounded_channel();
    report(&RunEvent::Started { pipeline: &planner.pipeline.name, stages: planner.pipeline.stages.len() });
    let mut run = Run {
        board: Board::new(planner.graph, &options.selection, options.keep_going),
        pool: Pool::new(options.machine.clone()),
        supply: options.remote.clone().map(|remote| Supply::new(remote, planner.store)),
        options: &options,
        all_here: planner.pipeline.stages.iter().all(|stage| options.machine.runs_here(stage)),
        planner,
        artifacts,
        report,
        running: HashMap::new(),
        reopened: HashSet::new(),
        lease,
        stop: Stop::new(),
        steps: JoinSet::new(),
        clock: outlook::Clock::new(start),
        events,
    };
    // This may read large sources. Until a stage runs, Ctrl-C just ends the process: there is nothing to save.
    run.resolve(run.planner.graph.order().to_vec())?;
    run.stop.listen()?;
    run.resume_sending()?;
    if let Err(error) = run.work(&mut received).await {
        run.wind_down(&mut received).await;
        return Err(error);
    }
    run.finish_sending().await;
    Ok(run.summary(start.elapsed()))
}

impl Run<'_, '_> {
    /// Resolves `stages` on the board, and reports the effects.
    fn resolve(&mut self, stages: Vec<usize>) -> Result<(), StoreError> {
        // Blocks garbage collection until the lease lists what was looked up.
        let _guard = self.planner.store.guard()?;
        let (mut keys, mut trees, mut mended) = (Vec::new(), Vec::new(), Vec::new());
        let effects = self.board.resolve(stages, |stage, outputs| {
            let lookup = self.planner.look_up(stage, outputs, self.options.selection.forces(stage))?;
            if let Some(lookup) = &lookup {
                keys.push(lookup.key);
                trees.extend(lookup.hit().map(|hit| hit.output.digest));
                mended.extend(lookup.mended.clone().map(|mended| (stage, mended)));
            }
            Ok::<_, StoreError>(lookup)
        })?;
        for (stage, mended) in mended {
            self.warn(stage, &format!("{CHANGED}: {mended}"));
        }
        for effect in effects {
            self.report_effect(effect);
        }
        self.lease.add(&keys, &trees)
    }

    fn report_effect(&mut self, effect: Effect) {
        match effect {
            Effect::Done(stage) => self.publish(stage),
            Effect::Skipped { stage, because } => {
                let pipeline = self.planner.pipeline;
                let (stage, because) = (&pipeline.stages[stage].name, &pipeline.stages[because].name);
                (self.report)(&RunEvent::Skipped { stage, because });
            }
        }
    }

    fn warn(&mut self, stage: usize, message: &str) {
        (self.report)(&RunEvent::Warning { stage: &self.planner.pipeline.stages[stage].name, message });
    }

    /// Reports a finished stage, links its artifact and notes it in the index.
    fn publish(&mut self, index: usize) {
        let Planner { pipeline, store, index: known, .. } = self.planner;
        let Some(Done { hit, folder, ran }) = self.board.done(index) else { return };
        let stage = &pipeline.stages[index];
        let (name, hit) = (&stage.name, &**hit);
        (self.report)(&if *ran {
            RunEvent::Finished { stage: name, index, hit }
        } else {
            RunEvent::Hit { stage: name, index, hit }
        });
        // A stage that ran has said these itself.
        if !*ran {
            for message in self.cautions(index) {
                (self.report)(&RunEvent::Warning { stage: name, message: &message });
            }
        }
        for (point, name) in &stage.owners {
            known.set_last(&pipeline.id(*point), name, hit.key);
            if let Err(error) = self.artifacts.link(&pipeline.points[*point].label, name, hit, folder, store) {
                // The artifact is safe in the store, so a missing link must not end the run.
                let message = format!("can't link the artifact under {}: {error}", self.artifacts.folder().display());
                (self.report)(&RunEvent::Warning { stage: &stage.name, message: &message });
            }
        }
    }

    /// Starts ready stages in order while the machine has room.
    fn start_ready(&mut self) -> Result<(), SchedulerError> {
        let pipeline = self.planner.pipeline;
        let mut last = None;
        while let Some(stage) = self.board.next_ready(last).filter(|_| !self.stop.is_requested()) {
            if !self.pool.has_room(self.all_here) || (self.options.jobs > 0 && self.working() >= self.options.jobs) {
                break;
            }
            last = Some(stage);
            if self.is_asked_for(stage) || self.refuse(stage)? {
                continue;
            }
            let Some(allocation) = self.pool.allocate(&pipeline.stages[stage]) else { continue };
            let Some(todo) = self.board.start(stage) else { continue };
            self.start(stage, todo, allocation)?;
        }
        Ok(())
    }

    /// The number of stages that have resources allocated.
    fn working(&self) -> usize {
        self.running.values().filter(|running| running.allocation.is_some()).count()
    }

    /// Starts the task of a stage.
    fn start(&mut self, stage: usize, todo: Todo, allocation: Allocation) -> Result<(), SchedulerError> {
        let Todo { manifest, reason } = todo;
        let reason = self.planner.explain(stage, &manifest, reason)?;
        let step = self.step(stage, manifest, allocation.clone(), &reason)?;
        self.running.insert(stage, Running { reason, allocation: Some(allocation), is_asked: false });
        self.steps.spawn(step::run(step, self.planner.store.clone(), self.stop.subscribe(), self.events.clone()));
        Ok(())
    }

    /// Everything that the task of a stage needs.
    fn step(
        &self,
        index: usize,
        manifest: Manifest,
        allocation: Allocation,
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
            device: self.options.machine.device_for(stage),
            workers: self.options.machine.workers_for(stage),
            inputs: self.inputs(index, &manifest),
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
        let task = Task {
            work: job.work.clone(),
            job: serde_json::to_vec_pretty(&job)
                .map_err(|error| StoreError::Refused { path: job.work.clone(), what: error.to_string() })?,
            place: self.options.executors.place(stage, allocation, self.options.machine.gpus_asked(stage)),
            environment: self.options.environment.clone(),
        };
        Ok(Step {
            index,
            key,
            forced: *reason == MissReason::Forced,
            provenance,
            task,
            executors: self.options.executors.clone(),
            retry: self.options.retry,
        })
    }

    /// The folders of a stage's inputs. The step checks what is in them.
    fn inputs(&self, index: usize, manifest: &Manifest) -> BTreeMap<String, InputFolder> {
        let Planner { pipeline, store, .. } = self.planner;
        let folder = |(name, digest): (&String, &Digest)| {
            let from = &pipeline.stages[pipeline.stages[index].inputs[name]];
            let path = store.tree_path(*digest);
            // A download from a local folder is a copy: messages should name the original.
            let copied = from.sources.values().next().filter(|source| source.is_dir()).cloned();
            let origin = copied.unwrap_or_else(|| self.artifacts.of(pipeline, from));
            (name.clone(), InputFolder { path, origin })
        };
        manifest.inputs.iter().map(folder).collect()
    }

    /// Reports an event of a running stage.
    fn on_event(&mut self, index: usize, event: StepEvent) {
        let stage = &self.planner.pipeline.stages[index];
        let name = &stage.name;
        self.watch(index, &event);
        match event {
            StepEvent::Waiting => {
                // Other stages can use its resources while it waits.
                if let Some(allocation) = self.running.get_mut(&index).and_then(|running| running.allocation.take()) {
                    self.pool.release(allocation);
                }
                (self.report)(&RunEvent::Waiting { stage: name });
            }
            StepEvent::State(state) => (self.report)(&RunEvent::State { stage: name, state: &state }),
            StepEvent::Note(message) => {
                let message = format!("{name}: {message}");
                (self.report)(&RunEvent::Note { stage: name, message: &message });
            }
            StepEvent::Running { resumed, start, .. } => {
                if let Some(Running { reason, .. }) = self.running.get(&index) {
                    (self.report)(&RunEvent::Running { stage: name, kind: stage.kind, reason, resumed, start });
                    if let Some(message) = self.options.machine.device_note(stage) {
                        (self.report)(&RunEvent::Note { stage: name, message: &message });
                    }
                }
            }
            StepEvent::Pulling { bytes } => {
                let from = self.remote_address();
                (self.report)(&RunEvent::Pulling { stage: name, bytes, from: &from });
            }
            StepEvent::Pulled { bytes, files } => {
                let from = self.remote_address();
                (self.report)(&RunEvent::Pulled { stage: name, bytes, files, from: &from });
                if let Some(supply) = &mut self.supply {
                    supply.pulled(bytes);
                }
            }
            StepEvent::Retrying { message, seconds } => {
                (self.report)(&RunEvent::Retrying { stage: name, message: &message, seconds });
            }
            StepEvent::Stage(Event::Progress(progress)) => {
                (self.report)(&RunEvent::Progress { stage: name, progress: &progress });
            }
            StepEvent::Stage(
                Event::Warning { message } | Event::Caution { message } | Event::Unchecked { message },
            ) => {
                (self.report)(&RunEvent::Warning { stage: name, message: &message });
            }
            StepEvent::Stage(_) => {}
        }
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
        let hit = self.board.done(index).map(|done| &*done.hit);
        StageEnd {
            name: stage.name.clone(),
            kind: stage.kind.into(),
            state: self.board.end_of(index),
            seconds: hit.map(|hit| hit.seconds),
            peak_memory: hit.and_then(|hit| hit.peak_memory),
            key: hit.map(|hit| hit.key),
            output: hit.map(|hit| hit.output),
            link: hit.map(|_| self.artifacts.of(self.planner.pipeline, stage)),
            results: hit.map(|hit| hit.results.clone()).unwrap_or_default(),
            cautions: self.cautions(index),
            index,
        }
    }

    /// Warnings about the result of a stage.
    fn cautions(&self, index: usize) -> Vec<String> {
        let Some(Done { hit, ran, .. }) = self.board.done(index) else { return Vec::new() };
        let elsewhere = self.options.machine.made_on_a_cpu(&self.planner.pipeline.stages[index], hit);
        hit.cautions.iter().cloned().chain(elsewhere.filter(|_| !*ran)).collect()
    }
}
