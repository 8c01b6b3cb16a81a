//! What the machine has, and who has it now. Independent of what stages do with it.

use imp_stages::contract::bytes::ByteSize;

use crate::{
    machine::{Grant, Machine},
    pipeline::{Diagnostic, Pipeline, StageDecl},
};

/// What is free.
#[derive(Debug)]
pub(super) struct Pool {
    machine: Machine,
    cpus: usize,
    gpus: Vec<String>,
    memory: u64,
}

impl Machine {
    /// Threads for a stage: no more than there are, as fewer threads change no result.
    fn cpus_for(&self, stage: &StageDecl) -> usize {
        if stage.cpus == 0 { self.cpus } else { stage.cpus.min(self.cpus) }
    }

    /// GPUs for a stage: where there are none, it runs on the CPUs.
    fn gpus_for(&self, stage: &StageDecl) -> usize {
        if self.gpus.is_empty() { 0 } else { stage.runtime.gpus }
    }

    /// Stages that can never run here, by their positions.
    pub(crate) fn refuses(&self, pipeline: &Pipeline) -> Vec<(usize, Diagnostic)> {
        let stages = pipeline.stages.iter().enumerate();
        stages.filter_map(|(index, stage)| Some((index, self.refuses_stage(stage)?))).collect()
    }

    fn refuses_stage(&self, stage: &StageDecl) -> Option<Diagnostic> {
        let name = &stage.name;
        let wrong = |message: String, help: &str| {
            Some(Diagnostic::new(message, Some(stage.span.clone())).label("can never run here").help(help))
        };
        if self.gpus_for(stage) > self.gpus.len() {
            let (wanted, all) = (stage.runtime.gpus, self.gpus.len());
            return wrong(
                format!("stage `{name}` wants {wanted} GPUs and this machine has {all}"),
                "ask for fewer under [stages.NAME.runtime], or say in imp-flow.toml what there is: `gpus = [0, 1]`",
            );
        }
        match (stage.runtime.memory, self.memory) {
            (Some(wanted), Some(all)) if wanted.0 > all => wrong(
                format!("stage `{name}` wants {wanted} of memory and this machine has {}", ByteSize(all)),
                "ask for less under [stages.NAME.runtime], or say in imp-flow.toml what there is: `memory = \"64GB\"`",
            ),
            _ => None,
        }
    }
}

impl Pool {
    pub(super) fn new(machine: Machine) -> Self {
        let (cpus, gpus, memory) = (machine.cpus, machine.gpus.clone(), machine.memory.unwrap_or(u64::MAX));
        Self { machine, cpus, gpus, memory }
    }

    /// Takes what `stage` needs, if that is free now.
    pub(super) fn take(&mut self, stage: &StageDecl) -> Option<Grant> {
        let (cpus, gpus) = (self.machine.cpus_for(stage), self.machine.gpus_for(stage));
        let memory = stage.runtime.memory.map_or(0, |size| size.0);
        if cpus > self.cpus || gpus > self.gpus.len() || memory > self.memory {
            return None;
        }
        self.cpus -= cpus;
        self.memory -= memory;
        Some(Grant { cpus, gpus: self.gpus.drain(..gpus).collect(), memory })
    }

    pub(super) fn give_back(&mut self, grant: Grant) {
        self.cpus += grant.cpus;
        self.memory += grant.memory;
        self.gpus.extend(grant.gpus);
        // The lowest first: easy to follow on the machine's monitor.
        let order = |gpu: &String| self.machine.gpus.iter().position(|known| known == gpu);
        self.gpus.sort_by_key(order);
    }

    /// Whether at least one CPU is free; every stage needs one.
    pub(super) fn has_cpus(&self) -> bool {
        self.cpus > 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::pipeline::{self, Sources};

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
    fn gpus_are_handed_out_by_their_names_and_come_back_in_order() {
        let pipeline = stages(TWO);
        let [a, b] = [&pipeline.stages[0], &pipeline.stages[1]];
        let gpus = ["3", "5", "6"].map(String::from);
        let mut pool = Pool::new(Machine { cpus: 8, gpus: gpus.to_vec(), memory: Some(16_000_000_000) });
        let first = pool.take(a).unwrap();
        assert_eq!((first.cpus, first.gpus.as_slice()), (8, &gpus[..1]), "no more threads than there are");
        assert_eq!(pool.take(b), None, "no thread is left");
        pool.give_back(first);
        let second = pool.take(b).unwrap();
        assert_eq!((second.cpus, second.gpus.as_slice()), (2, &gpus[..2]));
        pool.give_back(second);
        assert_eq!(pool.gpus, gpus);
    }

    #[test]
    fn memory_keeps_stages_apart_and_gpus_need_not_be_there() {
        let pipeline = stages(&TWO.replace("cpus = 64", "cpus = 1"));
        let [a, b] = [&pipeline.stages[0], &pipeline.stages[1]];
        let mut pool = Pool::new(Machine { cpus: 8, gpus: vec![], memory: Some(11_000_000_000) });
        let grant = pool.take(a).unwrap();
        assert!(grant.gpus.is_empty());
        assert_eq!(pool.take(b), None);
        pool.give_back(grant);
        assert!(pool.take(b).is_some());
    }

    #[test]
    fn what_can_never_run_is_refused() {
        let pipeline = stages(TWO);
        let refused = |gpus: &[&str], gigabytes: u64| {
            let gpus = gpus.iter().map(ToString::to_string).collect();
            let machine = Machine { cpus: 1, gpus, memory: Some(gigabytes * 1_000_000_000) };
            machine.refuses(&pipeline).into_iter().map(|(_, problem)| problem.message).collect::<Vec<_>>()
        };
        assert!(refused(&[], 8).is_empty() && refused(&["0", "1"], 8).is_empty());
        assert_eq!(refused(&["0"], 8), ["stage `b` wants 2 GPUs and this machine has 1"]);
        assert_eq!(refused(&[], 5).len(), 2);
        assert_eq!(refused(&[], 5)[0], "stage `a` wants 6.0 GB of memory and this machine has 5.0 GB");
    }
}
