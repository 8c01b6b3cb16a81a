//! The machine's resources: which are free, and which stages can never have enough. Independent of what stages do with them.

use imp_stages::contract::{bytes::ByteSize, executor::Executor};

use crate::{
    machine::{Allocation, Machine},
    pipeline::{Diagnostic, Pipeline, StageDecl},
};

/// The free resources.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    machine: Machine,
    cpus: usize,
    gpus: Vec<String>,
    memory: u64,
    /// Jobs that can still be sent to other machines.
    jobs: usize,
}

impl Machine {
    /// Whether a stage runs on this machine.
    pub(crate) fn runs_here(&self, stage: &StageDecl) -> bool {
        let stays = self.elsewhere.cluster.local.iter().any(|kind| kind == stage.kind);
        let usual = if stays { Executor::Local } else { self.elsewhere.executor };
        stage.runtime.executor.unwrap_or(usual) == Executor::Local
    }

    /// Threads for a stage. No more than the machine has: the number of threads does not change results.
    fn cpus_for(&self, stage: &StageDecl) -> usize {
        if stage.cpus == 0 { self.cpus } else { stage.cpus.min(self.cpus) }
    }

    /// The stages that can never run on this machine, by index.
    pub(crate) fn refuses(&self, pipeline: &Pipeline) -> Vec<(usize, Diagnostic)> {
        let stages = pipeline.stages.iter().enumerate();
        stages.filter_map(|(index, stage)| Some((index, self.refuses_stage(stage)?))).collect()
    }

    pub(super) fn refuses_stage(&self, stage: &StageDecl) -> Option<Diagnostic> {
        let name = &stage.name;
        if !self.runs_here(stage) {
            // What other machines have, they know.
            let (message, help) = self.elsewhere.unusable.clone()?;
            return Some(Diagnostic::new(message, Some(stage.span.clone())).label("is to run there").help(help));
        }
        let refused = |message: String, help: &str| {
            Some(Diagnostic::new(message, Some(stage.span.clone())).label("can never run here").help(help))
        };
        if self.gpus_for(stage) > self.gpus.len() {
            let (needed, all) = (self.gpus_for(stage), self.gpus.len());
            return refused(
                format!("stage `{name}` needs {needed} GPUs, but this machine has {all}"),
                "request fewer under [stages.NAME.runtime], or list this machine's GPUs in imp-flow.toml, as in `gpus = [0, 1]`",
            );
        }
        if let Some(problem) = self.refuses_device(stage) {
            return Some(problem);
        }
        match (stage.runtime.memory, self.memory) {
            (Some(needed), Some(all)) if needed.0 > all => refused(
                format!("stage `{name}` needs {needed} of memory, but this machine has {}", ByteSize(all)),
                "request less under [stages.NAME.runtime], or set this machine's memory in imp-flow.toml, as in `memory = \"64GB\"`",
            ),
            _ => None,
        }
    }
}

impl Pool {
    pub(super) fn new(machine: Machine) -> Self {
        let (cpus, gpus, memory) = (machine.cpus, machine.gpus.clone(), machine.memory.unwrap_or(u64::MAX));
        let jobs = machine.elsewhere.cluster.jobs;
        Self { machine, cpus, gpus, memory, jobs }
    }

    /// Allocates what `stage` needs, if it is free.
    pub(super) fn allocate(&mut self, stage: &StageDecl) -> Option<Allocation> {
        if !self.machine.runs_here(stage) {
            self.jobs = self.jobs.checked_sub(1)?;
            return Some(Allocation { cpus: 0, gpus: Vec::new(), memory: 0, elsewhere: true });
        }
        let (cpus, gpus) = (self.machine.cpus_for(stage), self.machine.gpus_for(stage));
        let memory = stage.runtime.memory.map_or(0, |size| size.0);
        if cpus > self.cpus || gpus > self.gpus.len() || memory > self.memory {
            return None;
        }
        self.cpus -= cpus;
        self.memory -= memory;
        Some(Allocation { cpus, gpus: self.gpus.drain(..gpus).collect(), memory, elsewhere: false })
    }

    /// Frees the resources of a stage.
    pub(super) fn release(&mut self, allocation: Allocation) {
        self.jobs += usize::from(allocation.elsewhere);
        self.cpus += allocation.cpus;
        self.memory += allocation.memory;
        self.gpus.extend(allocation.gpus);
        // In the machine's order, so that the first GPUs are used first.
        let order = |gpu: &String| self.machine.gpus.iter().position(|known| known == gpu);
        self.gpus.sort_by_key(order);
    }

    /// Whether a stage may still find room: every stage here needs a CPU.
    pub(super) fn has_room(&self, all_here: bool) -> bool {
        self.cpus > 0 || (!all_here && self.jobs > 0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        machine::{DevicePolicy, Elsewhere},
        pipeline::{self, Sources},
    };

    fn machine(cpus: usize, gpus: &[&str], gigabytes: u64) -> Machine {
        let gpus = gpus.iter().map(ToString::to_string).collect();
        let (memory, device) = (Some(gigabytes * 1_000_000_000), DevicePolicy::default());
        let elsewhere = Elsewhere::default();
        Machine { cpus, gpus, gpus_from: None, no_gpu: None, gpu_memory: None, memory, device, elsewhere }
    }

    fn stages(text: &str) -> Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        pipeline::load(&file, &[], &mut Sources::default()).unwrap()
    }

    const TWO: &str = r#"
[stages.a]
kind = "synthetic"
runtime = { cpus = 64, gpus = 1, memory = "6GB" }
[stages.b]
kind = "synthetic"
runtime = { cpus = 2, gpus = 2, memory = "6GB" }
"#;

    #[test]
    fn gpus_are_allocated_by_name_and_released_in_order() {
        let pipeline = stages(TWO);
        let [a, b] = [&pipeline.stages[0], &pipeline.stages[1]];
        let gpus = ["3", "5", "6"];
        let mut pool = Pool::new(machine(8, &gpus, 16));
        let first = pool.allocate(a).unwrap();
        assert_eq!(
            (first.cpus, first.gpus.as_slice()),
            (8, ["3".to_string()].as_slice()),
            "no more threads than the machine has"
        );
        assert_eq!(pool.allocate(b), None, "no thread is left");
        pool.release(first);
        let second = pool.allocate(b).unwrap();
        assert_eq!((second.cpus, second.gpus.as_slice()), (2, ["3", "5"].map(String::from).as_slice()));
        pool.release(second);
        assert_eq!(pool.gpus, gpus);
    }

    #[test]
    fn memory_limits_concurrent_stages_and_gpus_are_optional() {
        let pipeline = stages(&TWO.replace("cpus = 64", "cpus = 1"));
        let [a, b] = [&pipeline.stages[0], &pipeline.stages[1]];
        let mut pool = Pool::new(machine(8, &[], 11));
        let allocation = pool.allocate(a).unwrap();
        assert!(allocation.gpus.is_empty());
        assert_eq!(pool.allocate(b), None);
        pool.release(allocation);
        assert!(pool.allocate(b).is_some());
    }

    #[test]
    fn what_runs_elsewhere_takes_nothing_here_but_a_place_among_the_jobs() {
        let pipeline = stages(&TWO.replace("gpus = 2", "gpus = 2, executor = \"local\""));
        let [a, b] = [&pipeline.stages[0], &pipeline.stages[1]];
        let mut machine = machine(2, &["0", "1"], 6);
        machine.elsewhere.executor = Executor::Slurm;
        machine.elsewhere.cluster.jobs = 1;
        assert!(!machine.runs_here(a) && machine.runs_here(b));
        let mut pool = Pool::new(machine.clone());
        let away = pool.allocate(a).unwrap();
        assert!(away.elsewhere && pool.allocate(a).is_none(), "one job at once");
        assert!(pool.allocate(b).is_some(), "all of this machine is free");
        assert!(!pool.has_room(false));
        pool.release(away);
        assert!(pool.has_room(false) && !pool.has_room(true) && pool.allocate(a).is_some());
        // It may have GPUs there, whatever this machine has. A kind can stay here.
        machine.gpus = Vec::new();
        assert_eq!(machine.device_for(a), imp_stages::contract::device::Device::Cuda);
        machine.elsewhere.cluster.local = vec!["synthetic".into()];
        assert!(machine.runs_here(a));
    }

    #[test]
    fn stages_that_can_never_run_are_refused() {
        let pipeline = stages(TWO);
        let refused = |gpus: &[&str], gigabytes: u64| {
            let machine = machine(1, gpus, gigabytes);
            machine.refuses(&pipeline).into_iter().map(|(_, problem)| problem.message).collect::<Vec<_>>()
        };
        assert!(refused(&[], 8).is_empty() && refused(&["0", "1"], 8).is_empty());
        assert_eq!(refused(&["0"], 8), ["stage `b` needs 2 GPUs, but this machine has 1"]);
        assert_eq!(refused(&[], 5).len(), 2);
        assert_eq!(refused(&[], 5)[0], "stage `a` needs 6.0 GB of memory, but this machine has 5.0 GB");
    }
}
