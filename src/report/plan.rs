//! The output of `imp-flow plan`.

use std::fmt::Write;

use imp_stages::contract::{
    device::Device,
    forecast::{Forecast, Work},
};

use super::{
    foreign::one_line,
    print::print,
    style::{DIM, GOOD, Style, WARN},
    units, why,
};
use crate::{
    machine::Machine,
    pipeline::{Pipeline, StageDecl},
    scheduler::Verdict,
    store::{Hit, Store},
};

/// Shows what would run and why. `rate` is the CPU's, in floating-point operations a second.
pub(crate) fn plan(
    pipeline: &Pipeline,
    store: &Store,
    machine: &Machine,
    verdicts: &[(usize, Verdict)],
    forecasts: &[Forecast],
    rate: Option<f64>,
    style: Style,
) {
    if style.json {
        return plan_as_json(pipeline, machine, verdicts, forecasts, rate);
    }
    let pulls: Vec<u64> = verdicts.iter().filter_map(|(_, verdict)| to_pull(verdict)).collect();
    let hits = verdicts.iter().filter(|(_, verdict)| is_hit(verdict)).count() - pulls.len();
    let width = pipeline.stages.iter().map(|stage| stage.name.len()).max().unwrap_or(0);
    for ((index, verdict), forecast) in verdicts.iter().zip(forecasts) {
        let (colour, word) = match verdict {
            Verdict::Hit { .. } => (DIM, "cached"),
            Verdict::Remote { .. } => (DIM, "remote"),
            Verdict::Run { .. } => (GOOD, "run"),
            Verdict::After { .. } => (WARN, "after"),
        };
        let resumable = matches!(verdict, Verdict::Run { key, .. } if store.work(*key).has_checkpoint());
        let more = if resumable { "; resumes from its checkpoint" } else { "" };
        print(&format!(
            "{colour}{word:<6}{colour:#}  {:<width$}  {}{more}",
            pipeline.stages[*index].name,
            why::reason(&reason(pipeline, verdict))
        ));
        let stage = &pipeline.stages[*index];
        let on_cpu = machine.device_for(stage) == Device::Cpu;
        if let Some(text) = takes(forecast, rate.filter(|_| on_cpu)) {
            print(&format!("{DIM}{:<width$}  {text}{DIM:#}", "", width = width + 8));
        }
        let note = machine.device_note(stage).filter(|_| !is_hit(verdict));
        let trouble = forecast.trouble.as_deref().map(one_line);
        let elsewhere = from_a_cpu(store, machine, stage, verdict);
        let too_much = if machine.runs_here(stage) { too_much(forecast, machine) } else { Vec::new() };
        let unknown = forecast.unknown.as_ref().map(|why| format!("its size is unknown: {why}"));
        for text in note.into_iter().chain(elsewhere).chain(unknown).chain(trouble).chain(too_much) {
            print(&format!("{WARN}{:<width$}  {text}{WARN:#}", "", width = width + 8));
        }
    }
    let download: u64 = forecasts.iter().filter_map(|forecast| forecast.download).sum();
    let unknown = forecasts.iter().filter(|forecast| forecast.unknown.is_some()).count();
    let download = match (download, unknown) {
        (0, 0) => String::new(),
        (0, _) => ", with an unknown size to download".into(),
        (_, 0) => format!(", {} to download", units::bytes(download)),
        (_, _) => format!(", {} and an unknown size to download", units::bytes(download)),
    };
    let pulled = match pulls.as_slice() {
        [] => String::new(),
        pulls => format!(", {} in the remote cache ({} to pull)", pulls.len(), units::bytes(pulls.iter().sum())),
    };
    let (all, name) = (verdicts.len(), &pipeline.name);
    print(&match all - hits - pulls.len() {
        0 if pulls.is_empty() => format!("\n{name} is up to date: {hits} of {hits} cached"),
        0 => format!("\n{name}: {hits} of {all} cached{pulled}, none would run"),
        open => format!("\n{name}: {hits} of {all} cached{pulled}, {open} would run{download}"),
    });
}

/// That a cached result is not from the device that the stage asks for.
fn from_a_cpu(store: &Store, machine: &Machine, stage: &StageDecl, verdict: &Verdict) -> Option<String> {
    let Verdict::Hit { key } = verdict else { return None };
    if !machine.must_have_gpu(stage) {
        return None;
    }
    let receipt = store.receipt(*key).ok().flatten()?;
    machine.made_on_a_cpu(stage, &Hit::from(receipt)).map(|text| one_line(&text))
}

/// Whether nothing has to run for it.
fn is_hit(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Hit { .. } | Verdict::Remote { .. })
}

/// The bytes to take from the remote cache.
fn to_pull(verdict: &Verdict) -> Option<u64> {
    match verdict {
        Verdict::Remote { bytes, .. } => Some(*bytes),
        _ => None,
    }
}

/// That a stage needs more memory than there is, if so.
fn too_much(forecast: &Forecast, machine: &Machine) -> Vec<String> {
    let Some(memory) = forecast.memory else { return Vec::new() };
    let needs = [(Some(memory.bytes), machine.memory, "this machine"), (memory.gpu, machine.gpu_memory, "its GPU")];
    let exceeded = needs.into_iter().filter_map(|(needed, available, whose)| {
        let available = available.filter(|available| needed.is_some_and(|needed| needed > *available))?;
        Some(format!("that is more than the {} of {whose}: {}", units::bytes(available), memory.remedy))
    });
    exceeded.collect()
}

/// The resources that a stage will need, if known.
fn takes(forecast: &Forecast, rate: Option<f64>) -> Option<String> {
    let download = forecast.download.map(|bytes| format!("downloads {}", units::bytes(bytes)));
    let memory = forecast.memory.map(|memory| {
        let about = if memory.at_most { "up to" } else { "about" };
        match memory.gpu {
            None => format!("{about} {} of memory", units::bytes(memory.bytes)),
            Some(gpu) => {
                let whose = if memory.gpus > 1 { format!("each of {} GPUs'", memory.gpus) } else { "the GPU's".into() };
                format!(
                    "{about} {} of {whose} memory and {} of the host's",
                    units::bytes(gpu),
                    units::bytes(memory.bytes)
                )
            }
        }
    });
    let steps = forecast.steps.map(|steps| units::count(steps, "step"));
    let time = forecast.work.zip(rate).map(|(work, rate)| match work {
        Work::Whole(work) => format!("{} or more on this CPU", units::duration(work / rate)),
        Work::FullStep(work) => {
            format!("a full-length step takes {} or more on this CPU", units::duration(work / rate))
        }
    });
    let all: Vec<String> = [download, memory, steps, time].into_iter().flatten().collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn plan_as_json(
    pipeline: &Pipeline,
    machine: &Machine,
    verdicts: &[(usize, Verdict)],
    forecasts: &[Forecast],
    rate: Option<f64>,
) {
    for ((index, verdict), Forecast { memory, download, unknown, trouble, steps, work, .. }) in
        verdicts.iter().zip(forecasts)
    {
        let stage = &pipeline.stages[*index];
        let device = machine.device_for(stage);
        // The rate is the CPU's.
        let (whole, step) = match (work, rate.filter(|_| device == Device::Cpu)) {
            (Some(Work::Whole(work)), Some(rate)) => (Some(work / rate), None),
            (Some(Work::FullStep(work)), Some(rate)) => (None, Some(work / rate)),
            _ => (None, None),
        };
        let (state, key) = match verdict {
            Verdict::Hit { key } => ("cached", Some(key)),
            Verdict::Remote { key, .. } => ("remote", Some(key)),
            Verdict::Run { key, .. } => ("run", Some(key)),
            Verdict::After { .. } => ("after", None),
        };
        let device = stage.uses_gpu.then_some(device);
        print(
            &serde_json::json!({
                "stage": stage.name, "kind": stage.kind, "state": state, "key": key,
                "why": (!is_hit(verdict)).then(|| reason(pipeline, verdict)), "pull": to_pull(verdict),
                "memory": memory.map(|memory| memory.bytes), "memory_at_most": memory.map(|memory| memory.at_most),
                "gpu_memory": memory.and_then(|memory| memory.gpu), "device": device,
                "gpus": memory.and_then(|memory| memory.gpu.map(|_| memory.gpus)),
                "download": download, "unknown": unknown, "trouble": trouble, "steps": steps, "seconds_at_least": whole, "full_step_seconds_at_least": step,
            })
            .to_string(),
        );
    }
}

/// Why a stage would run, or the key of a cached one.
fn reason(pipeline: &Pipeline, verdict: &Verdict) -> String {
    match verdict {
        Verdict::Hit { key } => key.short(),
        Verdict::Remote { key, bytes, .. } => format!("{}, {} to pull", key.short(), units::bytes(*bytes)),
        Verdict::Run { reason, .. } => reason.to_string(),
        Verdict::After { stages, changes } => {
            let names: Vec<&str> = stages.iter().map(|stage| pipeline.stages[*stage].name.as_str()).collect();
            let mut text = match names.as_slice() {
                [name] => format!("its input {name} runs first"),
                names => format!("its inputs {} run first", names.join(", ")),
            };
            for change in changes {
                let _ = write!(text, "; {change}");
            }
            text
        }
    }
}

#[cfg(test)]
mod tests {
    use imp_stages::contract::forecast::MemoryForecast;

    use super::*;
    use crate::machine::{DevicePolicy, Elsewhere};

    const GB: u64 = 1_000_000_000;

    #[test]
    fn memory_is_the_hosts_unless_a_gpu_is_named() {
        let of = |gpu: Option<u64>| {
            let memory = MemoryForecast { bytes: 3 * GB, gpu, gpus: 1, at_most: true, remedy: "take less" };
            Forecast { memory: Some(memory), ..Forecast::default() }
        };
        assert_eq!(takes(&of(None), None).as_deref(), Some("up to 3.0 GB of memory"));
        let both = "up to 20.0 GB of the GPU's memory and 3.0 GB of the host's";
        assert_eq!(takes(&of(Some(20 * GB)), None).as_deref(), Some(both));
        let mut of_two = of(Some(20 * GB));
        of_two.memory.iter_mut().for_each(|memory| memory.gpus = 2);
        let each = "up to 20.0 GB of each of 2 GPUs' memory and 3.0 GB of the host's";
        assert_eq!(takes(&of_two, None).as_deref(), Some(each));

        let machine = |memory: u64, gpu: u64| Machine {
            cpus: 1,
            gpus: Vec::new(),
            gpus_from: None,
            no_gpu: None,
            gpu_memory: Some(gpu),
            memory: Some(memory),
            device: DevicePolicy::default(),
            elsewhere: Elsewhere::default(),
        };
        let words = |whose: &str| format!("that is more than the 2.0 GB of {whose}: take less");
        assert_eq!(too_much(&of(None), &machine(4 * GB, 2 * GB)), [""; 0]);
        assert_eq!(too_much(&of(Some(20 * GB)), &machine(4 * GB, 2 * GB)), [words("its GPU")]);
        assert_eq!(too_much(&of(Some(20 * GB)), &machine(2 * GB, 24 * GB)), [words("this machine")]);
    }
}
