//! How far a run is, and about how long it will still take: collects what is known about the time of its stages.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use imp_stages::contract::{device::Device, event::Event};

use super::{
    super::{
        RunEvent,
        remaining::{Open, Past, Watch, remaining},
        step::StepEvent,
    },
    Run,
};
use crate::{pipeline::StageDecl, store::Receipt};

/// How often it is told while no stage ends.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// No stage took longer than ten years, in seconds.
const YEARS: f64 = 3.2e8;

/// What is known about the time of stages, by their index.
pub(super) struct Clock {
    start: Instant,
    watches: HashMap<usize, Watch>,
    /// What receipts say. `None` for those that say nothing.
    past: HashMap<usize, Option<Past>>,
}

impl Clock {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, watches: HashMap::new(), past: HashMap::new() }
    }
}

impl Run<'_, '_> {
    /// Notes what an event says about the time of a stage.
    pub(super) fn watch(&mut self, stage: usize, event: &StepEvent) {
        let now = self.clock.start.elapsed().as_secs_f64();
        match event {
            StepEvent::Running { before, .. } => drop(self.clock.watches.insert(stage, Watch::new(*before))),
            // Anything else may be said of a job that waits in a queue.
            StepEvent::Stage(Event::Started { .. }) => self.clock.watches.entry(stage).or_default().begin(now),
            StepEvent::Stage(Event::Progress(progress)) => {
                self.clock.watches.entry(stage).or_default().progress(progress, now);
            }
            _ => {}
        }
    }

    /// Tells how far the run is, once a stage has been started.
    pub(super) fn report_outlook(&mut self) {
        if !self.options.outlook || self.running.is_empty() {
            return;
        }
        let selection = &self.options.selection;
        let order = self.planner.graph.order();
        let chosen: Vec<usize> = order.iter().copied().filter(|stage| selection.includes(*stage)).collect();
        let open: Vec<usize> = chosen.iter().copied().filter(|stage| self.board.is_open(*stage)).collect();
        if open.is_empty() {
            return;
        }
        let done = chosen.iter().filter(|stage| self.board.done(**stage).is_some()).count();
        for stage in &open {
            if !self.clock.past.contains_key(stage) {
                let past = self.past(*stage);
                self.clock.past.insert(*stage, past);
            }
        }
        let others = self.of_other_points();
        let open: Vec<Open> = open.into_iter().map(|stage| self.open(stage, &others)).collect();
        let (graph, stages) = (self.planner.graph, &self.planner.pipeline.stages);
        let left = remaining(&open, stages, graph, self.pool.clone(), self.options.jobs);
        (self.report)(&RunEvent::Outlook { done, stages: chosen.len(), seconds: left.seconds, untimed: left.untimed });
    }

    fn open(&self, stage: usize, others: &HashMap<(&str, &str), Past>) -> Open {
        let StageDecl { kind, owners, .. } = &self.planner.pipeline.stages[stage];
        let past = self.clock.past.get(&stage).copied().flatten();
        let past = past.or_else(|| others.get(&(*kind, owners[0].1.as_str())).copied());
        let running = self.running.get(&stage);
        let seconds = match self.clock.watches.get(&stage).filter(|_| running.is_some()) {
            _ if self.board.is_behind(stage) => Some(0.0),
            Some(watch) => watch.left(past, self.clock.start.elapsed().as_secs_f64()),
            None => past.map(|past| past.seconds),
        };
        let allocation = running.and_then(|running| running.allocation.clone());
        Open { stage, seconds, allocation, is_running: running.is_some() }
    }

    /// How long a stage took when it last ran, on this machine and this kind of device: in this point of a sweep, or without one.
    fn past(&self, index: usize) -> Option<Past> {
        let pipeline = self.planner.pipeline;
        let stage = &pipeline.stages[index];
        let alone = || {
            let key = self.planner.index.last(&pipeline.name, &stage.owners[0].1)?;
            self.planner.store.receipt(key).ok().flatten()
        };
        let receipt = self.planner.last_receipt(index).ok().flatten().or_else(alone)?;
        let Receipt { manifest, environment, origin, timing, .. } = receipt;
        let device = environment.map_or(Device::Cpu, |environment| environment.device);
        let comparable =
            manifest.kind == stage.kind && origin.is_none() && device == self.options.machine.device_for(stage);
        // Receipts are files, in which anything may stand.
        let seconds = Some(timing.seconds).filter(|seconds| comparable && (0.0..YEARS).contains(seconds))?;
        Some(Past { seconds, same: manifest.config == stage.config })
    }

    /// How long the stages of a kind and a name took in this run, on the average of the points of a sweep.
    fn of_other_points(&self) -> HashMap<(&str, &str), Past> {
        let mut took: HashMap<(&str, &str), Vec<f64>> = HashMap::new();
        for (index, stage) in self.planner.pipeline.stages.iter().enumerate() {
            if let Some(done) = self.board.done(index).filter(|done| done.ran) {
                took.entry((stage.kind, &stage.owners[0].1)).or_default().push(done.hit.seconds);
            }
        }
        let mean = |took: &[f64]| took.iter().sum::<f64>() / took.len() as f64;
        took.into_iter().map(|(name, took)| (name, Past { seconds: mean(&took), same: false })).collect()
    }
}
