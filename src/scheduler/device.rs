//! Where stages compute: on the CPU, or on a GPU of the machine. Independent of drivers: `Machine::no_gpu` says whether GPUs can
//! be used at all.

use imp_stages::contract::device::{Device, DeviceChoice};

use crate::{
    machine::Machine,
    pipeline::{Diagnostic, StageDecl},
    store::Hit,
};

impl Machine {
    /// The choice for a stage: that of the command line or the environment, else its own, else that of `imp-flow.toml`.
    fn choice(&self, stage: &StageDecl) -> DeviceChoice {
        self.device.all.or(stage.runtime.device).or(self.device.others).unwrap_or_default()
    }

    /// GPUs that a stage asks for.
    pub(crate) fn gpus_asked(&self, stage: &StageDecl) -> usize {
        match self.choice(stage) {
            _ if !stage.uses_gpu => 0,
            DeviceChoice::Cpu => 0,
            DeviceChoice::Cuda => stage.runtime.gpus.max(1),
            DeviceChoice::Auto => stage.runtime.gpus,
        }
    }

    /// GPUs for a stage. None on a machine without GPUs, where it runs on the CPU or is refused. What other machines have is not
    /// known here.
    pub(super) fn gpus_for(&self, stage: &StageDecl) -> usize {
        if self.gpus.is_empty() && self.runs_here(stage) { 0 } else { self.gpus_asked(stage) }
    }

    /// Where a stage computes.
    pub(crate) fn device_for(&self, stage: &StageDecl) -> Device {
        let usable = self.no_gpu.is_none() || !self.runs_here(stage);
        if self.gpus_for(stage) > 0 && usable { Device::Cuda } else { Device::Cpu }
    }

    /// Whether a stage has to compute on a GPU.
    pub(crate) fn must_have_gpu(&self, stage: &StageDecl) -> bool {
        self.choice(stage) == DeviceChoice::Cuda && stage.uses_gpu
    }

    /// Workers of a stage: one for each of its GPUs, if it computes on all of them.
    pub(super) fn workers_for(&self, stage: &StageDecl) -> usize {
        let on_all = stage.uses_all_gpus && self.device_for(stage) == Device::Cuda;
        if on_all { self.gpus_for(stage).max(1) } else { 1 }
    }

    /// Why a stage that must have a GPU can't have one.
    pub(super) fn refuses_device(&self, stage: &StageDecl) -> Option<Diagnostic> {
        if !self.must_have_gpu(stage) || self.device_for(stage) == Device::Cuda {
            return None;
        }
        let message = format!("stage `{}` can't run on a GPU: {}", stage.name, self.reason());
        let help = match self.device.all {
            Some(_) => "run it on the CPU with `--device auto`; `imp-flow doctor` shows what is missing",
            None => {
                "run it on the CPU with `device = \"auto\"` under [stages.NAME.runtime], or `--device auto`; \
                 `imp-flow doctor` shows what is missing"
            }
        };
        Some(Diagnostic::new(message, Some(stage.span.clone())).label("must run on a GPU").help(help))
    }

    /// That a stage which must compute on a GPU has a result from a CPU, since the device is no part of a key.
    pub(crate) fn made_on_a_cpu(&self, stage: &StageDecl, hit: &Hit) -> Option<String> {
        let cpu = hit.cpu.as_ref().filter(|_| self.must_have_gpu(stage))?;
        Some(format!(
            "`cuda` is asked for, and the cached result was made on the CPU of {cpu}; it is the same within rounding, and \
             `--force {}` makes it again",
            stage.name
        ))
    }

    fn reason(&self) -> &str {
        self.no_gpu.as_deref().unwrap_or("no GPU was found")
    }

    /// What the user should know about where a stage runs, in one line.
    pub(crate) fn device_note(&self, stage: &StageDecl) -> Option<String> {
        let (name, gpus) = (&stage.name, stage.runtime.gpus);
        if !stage.uses_gpu {
            let key = match stage.runtime.device {
                Some(DeviceChoice::Cuda) => "`device = \"cuda\"`".into(),
                _ if gpus > 0 => format!("`gpus = {gpus}`"),
                _ => return None,
            };
            return Some(format!("{name} runs on the CPU: it has no use for a GPU, so {key} can be removed"));
        }
        match (self.gpus_asked(stage), self.device_for(stage)) {
            (0 | 1, Device::Cuda) | (0, Device::Cpu) => None,
            (_, Device::Cuda) if stage.uses_all_gpus => None,
            (asked, Device::Cuda) => Some(format!(
                "{name} computes on one of its {asked} GPUs, as its kind can't use more: `gpus = 1` is enough"
            )),
            (_, Device::Cpu) => Some(format!("{name} runs on the CPU: {}", self.reason())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{
        machine::{DevicePolicy, Elsewhere},
        pipeline::{self, Pipeline, Sources},
    };

    /// A stage that can use a GPU, and one that can't.
    fn stages(runtime: &str) -> Pipeline {
        let merge = "[stages.merge]\nkind = \"merge\"\nmodel = \"train\"";
        let text = format!("[stages.train]\nkind = \"synthetic\"\nruntime = {runtime}\n{merge}\nruntime = {runtime}");
        pipeline_of(&text)
    }

    fn pipeline_of(text: &str) -> Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        pipeline::load(&file, &[], &mut Sources::default()).unwrap()
    }

    fn machine(gpus: &[&str], no_gpu: Option<&str>) -> Machine {
        Machine {
            cpus: 1,
            gpus: gpus.iter().map(ToString::to_string).collect(),
            gpus_from: None,
            no_gpu: no_gpu.map(Into::into),
            gpu_memory: None,
            memory: None,
            device: DevicePolicy::default(),
            elsewhere: Elsewhere::default(),
        }
    }

    const MISSING: &str = "no GPU was found; libcuda.so.1 is missing";

    #[test]
    fn a_stage_that_is_given_a_gpu_uses_it() {
        let machine = machine(&["0", "1"], None);
        for (runtime, gpus, device) in [
            ("{}", 0, Device::Cpu),
            ("{ gpus = 1 }", 1, Device::Cuda),
            ("{ gpus = 1, device = \"cpu\" }", 0, Device::Cpu),
            ("{ device = \"cuda\" }", 1, Device::Cuda),
            ("{ device = \"cuda\", gpus = 2 }", 2, Device::Cuda),
            ("{ device = \"auto\" }", 0, Device::Cpu),
        ] {
            let pipeline = stages(runtime);
            let [train, merge] = [&pipeline.stages[0], &pipeline.stages[1]];
            assert_eq!((machine.gpus_for(train), machine.device_for(train)), (gpus, device), "{runtime}");
            assert_eq!((machine.gpus_for(merge), machine.device_for(merge)), (0, Device::Cpu), "{runtime}");
            assert!(machine.refuses_device(train).is_none() && machine.refuses_device(merge).is_none());
            assert_eq!(machine.device_note(train).is_some(), gpus == 2, "{runtime}");
        }
    }

    #[test]
    fn a_kind_gets_a_worker_for_each_gpu_or_says_that_it_has_no_use_for_them() {
        let file = "[stages.a]\nkind = \"command\"\ncommand = [\"true\"]\nruntime = { gpus = 2 }";
        let (many, one) = (pipeline_of(file), stages("{ gpus = 2 }"));
        let two = machine(&["0", "1"], None);
        assert_eq!((two.workers_for(&many.stages[0]), two.device_note(&many.stages[0])), (2, None));
        assert_eq!(two.workers_for(&one.stages[0]), 1);
        let note = two.device_note(&one.stages[0]).unwrap();
        assert_eq!(note, "train computes on one of its 2 GPUs, as its kind can't use more: `gpus = 1` is enough");
        let none = machine(&[], Some(MISSING));
        assert_eq!(none.workers_for(&many.stages[0]), 1, "the CPU has one");
    }

    #[test]
    fn the_command_line_is_asked_first_and_the_settings_last() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        let choice = |all, own: &str, others| {
            let machine = Machine { device: DevicePolicy { all, others }, ..machine(&["0"], None) };
            machine.choice(&stages(own).stages[0])
        };
        assert_eq!(choice(None, "{}", None), Auto);
        assert_eq!(choice(None, "{}", Some(Cuda)), Cuda);
        assert_eq!(choice(None, "{ device = \"cpu\" }", Some(Cuda)), Cpu);
        assert_eq!(choice(Some(Auto), "{ device = \"cpu\" }", Some(Cuda)), Auto);
    }

    #[test]
    fn without_a_gpu_it_runs_on_the_cpu_and_says_so_or_is_refused() {
        for machine in [machine(&[], Some(MISSING)), machine(&["0"], Some(MISSING))] {
            let pipeline = stages("{ gpus = 1 }");
            let note = machine.device_note(&pipeline.stages[0]).unwrap();
            assert_eq!(note, "train runs on the CPU: no GPU was found; libcuda.so.1 is missing");
            assert_eq!(machine.device_for(&pipeline.stages[0]), Device::Cpu);
            assert!(machine.refuses_device(&pipeline.stages[0]).is_none());
            let problem = machine.refuses_device(&stages("{ device = \"cuda\" }").stages[0]).unwrap();
            let words = "stage `train` can't run on a GPU: no GPU was found; libcuda.so.1 is missing";
            assert_eq!(problem.message, words);
            assert!(problem.help.unwrap().contains("`imp-flow doctor`"));
            assert_eq!(machine.device_note(&stages("{}").stages[0]), None);
        }
    }

    #[test]
    fn keys_without_effect_are_named() {
        let note = |runtime: &str| machine(&[], Some(MISSING)).device_note(&stages(runtime).stages[1]);
        let words = "merge runs on the CPU: it has no use for a GPU, so `gpus = 2` can be removed";
        assert_eq!(note("{ gpus = 2 }").as_deref(), Some(words));
        assert!(note("{ device = \"cuda\" }").unwrap().contains("`device = \"cuda\"`"));
        assert_eq!([note("{}"), note("{ device = \"cpu\" }")], [None, None]);
    }
}
