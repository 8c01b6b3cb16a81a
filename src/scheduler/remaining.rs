//! About how long a run will still take: from how long its stages took before, and from the speed of those that are running. Pure:
//! independent of clocks, the store and the terminal.

use std::collections::BTreeSet;

use imp_stages::contract::event::Progress;

use super::resources::Pool;
use crate::{
    machine::Allocation,
    pipeline::{Graph, StageDecl},
};

/// How long a stage took before, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Past {
    pub(super) seconds: f64,
    /// Whether it had the same configuration, so that it should take as long again.
    pub(super) same: bool,
}

/// What is known about a running stage.
#[derive(Debug, Clone, Default)]
pub(super) struct Watch {
    /// Its work of earlier sessions, in seconds.
    before: f64,
    /// When its process started, in seconds of the run's clock. `None` while it is in the queue of a cluster.
    began: Option<f64>,
    /// When it was last heard that it works.
    heard: f64,
    part: Option<Part>,
}

/// A part of a stage's work: the progress in one unit.
#[derive(Debug, Clone)]
struct Part {
    unit: String,
    total: u64,
    /// The progress that was reported first and last, and when.
    first: (u64, f64),
    last: (u64, f64),
}

/// How long a speed is measured before anything is concluded from it, in seconds.
const MEASURED: f64 = 2.0;

impl Watch {
    pub(super) fn new(before: f64) -> Self {
        Self { before, ..Self::default() }
    }

    /// A process of it has started. It goes on where an earlier one was last heard of: what came in between was a queue or a pause.
    pub(super) fn begin(&mut self, now: f64) {
        self.before += self.began.map_or(0.0, |began| self.heard - began);
        (self.began, self.heard, self.part) = (Some(now), now, None);
    }

    pub(super) fn progress(&mut self, progress: &Progress, now: f64) {
        let Progress { done, total, unit, .. } = progress;
        self.heard = now;
        match &mut self.part {
            Some(part) if part.unit == *unit && part.total == *total && *done >= part.last.0 => {
                part.last = (*done, now);
            }
            part => *part = Some(Part { unit: unit.clone(), total: *total, first: (*done, now), last: (*done, now) }),
        }
    }

    /// Seconds until the stage is done, if that can be told. The speed only counts the present part of the work, so it is the least
    /// that is left, unless a stage of another configuration is all that is known.
    pub(super) fn left(&self, past: Option<Past>, now: f64) -> Option<f64> {
        let by_speed = self.part.as_ref().and_then(|part| part.left(now));
        let worked = self.before + self.began.map_or(0.0, |began| now - began);
        let by_past = past.map(|past| past.seconds - worked).filter(|left| *left > 0.0);
        match (by_speed, by_past) {
            (Some(speed), Some(left)) if past.is_some_and(|past| past.same) => Some(speed.max(left)),
            (Some(speed), _) => Some(speed),
            (None, left) => left,
        }
    }
}

impl Part {
    fn left(&self, now: f64) -> Option<f64> {
        let (done, took) = (self.last.0 - self.first.0, self.last.1 - self.first.1);
        if done == 0 || took < MEASURED || self.total < self.last.0 {
            return None;
        }
        let left = (self.total - self.last.0) as f64 * took / done as f64;
        Some((left - (now - self.last.1)).max(0.0))
    }
}

/// A stage that is not done.
#[derive(Debug, Clone)]
pub(super) struct Open {
    /// Its index in the pipeline.
    pub(super) stage: usize,
    /// Seconds that it will still take, if known.
    pub(super) seconds: Option<f64>,
    /// What it has, if it is running.
    pub(super) allocation: Option<Allocation>,
    pub(super) is_running: bool,
}

/// How long a run will still take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Remaining {
    /// Seconds, if the time of any stage is known.
    pub(super) seconds: Option<f64>,
    /// Stages whose time is not known, and counts for nothing.
    pub(super) untimed: usize,
}

/// Plays the rest of a run: `open` stages, in the order of execution, start as the scheduler starts them, at most `jobs` at once
/// (0 for any number), while the `pool` has room.
pub(super) fn remaining(open: &[Open], stages: &[StageDecl], graph: &Graph, mut pool: Pool, jobs: usize) -> Remaining {
    let untimed = open.iter().filter(|open| open.seconds.is_none()).count();
    if untimed == open.len() {
        return Remaining { seconds: None, untimed };
    }
    let seconds = |at: usize| open[at].seconds.unwrap_or(0.0);
    let mut undone: BTreeSet<usize> = open.iter().map(|open| open.stage).collect();
    let mut waiting: Vec<usize> = (0..open.len()).filter(|at| !open[*at].is_running).collect();
    // When each running stage ends, and what it frees then.
    let mut running: Vec<(f64, usize, Option<Allocation>)> = (0..open.len())
        .filter(|at| open[*at].is_running)
        .map(|at| (seconds(at), at, open[at].allocation.clone()))
        .collect();
    let mut now = 0.0;
    loop {
        waiting.retain(|&at| {
            let is_ready = graph.inputs(open[at].stage).all(|input| !undone.contains(&input));
            if !is_ready || (jobs > 0 && running.len() >= jobs) {
                return true;
            }
            let Some(allocation) = pool.allocate(&stages[open[at].stage]) else { return true };
            running.push((now + seconds(at), at, Some(allocation)));
            false
        });
        let next = (0..running.len()).min_by(|a, b| running[*a].0.total_cmp(&running[*b].0));
        let Some(next) = next else { return Remaining { seconds: Some(now), untimed } };
        let (end, at, allocation) = running.swap_remove(next);
        now = end;
        undone.remove(&open[at].stage);
        if let Some(allocation) = allocation {
            pool.release(allocation);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        machine::{DevicePolicy, Elsewhere, Machine},
        pipeline::{self, Pipeline, Sources},
    };

    /// `a -> b -> d` and `a -> c -> d`, each on one thread.
    fn diamond() -> Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        let stage = |name: &str, after: &str| {
            format!("[stages.{name}]\nkind = \"synthetic\"\nafter = {after}\nruntime = {{ cpus = 1 }}\n")
        };
        let text = [stage("a", "[]"), stage("b", "\"a\""), stage("c", "\"a\""), stage("d", "[\"b\", \"c\"]")].concat();
        std::fs::write(&file, text).unwrap();
        pipeline::load(&file, &[], &mut Sources::default()).unwrap()
    }

    fn pool(cpus: usize) -> Pool {
        let (device, elsewhere) = (DevicePolicy::default(), Elsewhere::default());
        let (gpus, gpu_memory) = (Vec::new(), None);
        Pool::new(Machine { cpus, gpus, gpus_from: None, no_gpu: None, gpu_memory, memory: None, device, elsewhere })
    }

    fn play(seconds: [Option<f64>; 4], cpus: usize, jobs: usize) -> Remaining {
        let pipeline = diamond();
        let graph = Graph::new(&pipeline).unwrap();
        let open = |(stage, seconds)| Open { stage, seconds, allocation: None, is_running: false };
        let open: Vec<Open> = seconds.into_iter().enumerate().map(open).collect();
        remaining(&open, &pipeline.stages, &graph, pool(cpus), jobs)
    }

    #[test]
    fn stages_side_by_side_take_the_time_of_the_longer_one() {
        let seconds = [Some(1.0), Some(10.0), Some(20.0), Some(2.0)];
        let known = |seconds| Remaining { seconds: Some(seconds), untimed: 0 };
        assert_eq!(play(seconds, 4, 0), known(23.0));
        assert_eq!(play(seconds, 1, 0), known(33.0), "one thread");
        assert_eq!(play(seconds, 4, 1), known(33.0), "--jobs 1");
    }

    #[test]
    fn unknown_times_are_counted_and_nothing_is_made_of_nothing() {
        assert_eq!(play([None; 4], 4, 0), Remaining { seconds: None, untimed: 4 });
        let some = play([Some(1.0), None, Some(20.0), None], 1, 0);
        assert_eq!(some, Remaining { seconds: Some(21.0), untimed: 2 });
    }

    #[test]
    fn a_running_stage_holds_what_it_has() {
        let pipeline = diamond();
        let graph = Graph::new(&pipeline).unwrap();
        let mut pool = pool(1);
        let allocation = pool.allocate(&pipeline.stages[1]);
        let open = [
            Open { stage: 1, seconds: Some(5.0), allocation, is_running: true },
            Open { stage: 2, seconds: Some(7.0), allocation: None, is_running: false },
        ];
        let left = remaining(&open, &pipeline.stages, &graph, pool, 0);
        assert_eq!(left, Remaining { seconds: Some(12.0), untimed: 0 });
    }

    fn steps(done: u64, total: u64) -> Progress {
        Progress { done, total, unit: "steps".into(), values: std::collections::BTreeMap::new() }
    }

    #[test]
    fn speed_and_past_are_weighed() {
        let past = |seconds, same| Some(Past { seconds, same });
        let mut watch = Watch::new(10.0);
        assert_eq!(watch.left(None, 0.0), None);
        assert_eq!(watch.left(past(100.0, true), 5.0), Some(90.0), "in a queue no work is done");
        watch.begin(5.0);
        assert_eq!(watch.left(past(100.0, true), 15.0), Some(80.0));
        // 40 of 140 steps were done before.
        watch.progress(&steps(40, 140), 15.0);
        assert_eq!(watch.left(None, 16.0), None, "no speed yet");
        watch.progress(&steps(60, 140), 25.0);
        assert_eq!(watch.left(None, 25.0), Some(40.0));
        assert_eq!(watch.left(None, 30.0), Some(35.0), "it goes on meanwhile");
        assert_eq!(watch.left(past(100.0, true), 25.0), Some(70.0), "there may be more to do than the steps");
        assert_eq!(watch.left(past(100.0, false), 25.0), Some(40.0), "another number of steps");
        assert_eq!(watch.left(past(20.0, true), 25.0), Some(40.0), "slower than before");
        // What takes longer than ever, without progress, is unknown.
        assert_eq!(Watch::new(0.0).left(past(0.0, true), 1.0), None);
        // Another part of the work has a speed of its own.
        watch.progress(&Progress { unit: "images".into(), ..steps(0, 10) }, 30.0);
        assert_eq!(watch.left(None, 40.0), None);
    }

    #[test]
    fn the_queue_between_two_attempts_is_no_work() {
        let past = Some(Past { seconds: 100.0, same: true });
        let mut watch = Watch::new(0.0);
        watch.begin(10.0);
        watch.progress(&steps(0, 100), 10.0);
        watch.progress(&steps(30, 100), 40.0);
        // Its time is over. It waits for another hour.
        watch.begin(3640.0);
        assert_eq!(watch.left(past, 3640.0), Some(70.0));
        watch.progress(&steps(30, 100), 3640.0);
        watch.progress(&steps(40, 100), 3650.0);
        assert_eq!(watch.left(None, 3650.0), Some(60.0));
    }
}
