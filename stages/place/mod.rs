//! Where a stage computes, and how exactly. Kinds open their place here only, and move their models to it. Independent of kinds
//! and of who allocates devices.

mod cpu;
mod fault;
mod workers;

use imp_model::{
    Precision,
    tensor::{Device as Opened, Place},
};

pub use self::{
    cpu::{Cpu, Feature, Native},
    fault::{fault, hush_faults},
};
pub(crate) use self::{
    fault::guarded,
    workers::{each, lock, name, no_thread, replicas, with_device_of},
};
use crate::{
    Job, StageError,
    contract::device::{Device, DeviceChoice, Environment},
};
pub use imp_model::tensor::{Card, Probe, free_bytes, probe};

/// The place of each worker of a stage with this precision. Their devices are open when this returns, and are recorded for the
/// receipt.
///
/// # Errors
/// If a device can't be opened.
pub(crate) fn places(job: &Job, precision: Precision) -> Result<Vec<Place>, StageError> {
    let count = job.workers();
    if job.device() == Device::Cpu {
        job.environment(cpu::Cpu::detect().environment());
        return Ok(vec![Place::host(precision); count]);
    }
    // The runner shows a stage only its own GPUs.
    let open = |index| match Opened::open(index) {
        Ok(opened) => Ok(Place::device(opened, precision)),
        Err(error) if count == 1 => Err(fault::error(&error)),
        Err(error) => Err(workers::named(fault::error(&error), &workers::name(index, count))),
    };
    let places = (0..count).map(open).collect::<Result<_, _>>()?;
    let probe = probe();
    let kinds = kinds(&probe, count);
    job.environment(gpus(&probe, &kinds));
    if kinds.len() > 1 {
        job.caution(format!(
            "its GPUs are not of one kind ({}): another number of them gives the same result within rounding only, and the slowest \
             sets the pace",
            kinds.join(", ")
        ));
    }
    Ok(places)
}

/// Where a model computes that is asked outside of a stage: on the first GPU that this process may see, or the CPU. Without a
/// `precision` in f32 on the CPU, and in bf16 on a GPU, which then holds twice as large a model. With `auto` also why it isn't a GPU,
/// if so.
///
/// # Errors
/// If a GPU must be used and can't be.
pub(crate) fn asked(choice: DeviceChoice, precision: Option<Precision>) -> Result<(Place, Option<String>), StageError> {
    let host = || Place::host(precision.unwrap_or(Precision::F32));
    if choice == DeviceChoice::Cpu {
        return Ok((host(), None));
    }
    match Opened::open(0) {
        Ok(opened) => Ok((Place::device(opened, precision.unwrap_or(Precision::Bf16)), None)),
        Err(fault) if choice == DeviceChoice::Cuda => Err(fault::asking(&fault)),
        Err(fault) => Ok((host(), Some(format!("it computes on the CPU: {fault}")))),
    }
}

/// The kinds of the first `count` GPUs of this process: `2 x NVIDIA H100`.
fn kinds(probe: &Probe, count: usize) -> Vec<String> {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for index in 0..count {
        let name = probe.cards.get(index).map_or("unknown", |card: &Card| card.name.as_str());
        match kinds.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => kinds.push((name, 1)),
        }
    }
    let words = |(name, count): (&str, usize)| if count == 1 { name.into() } else { format!("{count} x {name}") };
    kinds.into_iter().map(words).collect()
}

/// What is recorded of these GPUs.
fn gpus(probe: &Probe, kinds: &[String]) -> Environment {
    let name = kinds.join(" and ");
    let cublaslt = probe.cublaslt.clone().ok().map(|version| ("cuBLASLt".to_string(), version));
    let libraries = cublaslt.into_iter().collect();
    Environment { device: Device::Cuda, name, driver: probe.driver.clone().ok(), libraries }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::Trial;

    #[test]
    fn a_stage_on_the_cpu_computes_there_in_its_precision() {
        let root = tempfile::tempdir().unwrap();
        let job = Trial::new(&root.path().join("work"), &[]).job();
        for precision in [Precision::F32, Precision::Bf16] {
            assert_eq!(places(&job, precision).unwrap(), [Place::host(precision)]);
        }
    }

    #[test]
    fn gpus_are_recorded_with_their_driver_and_library() {
        let card = Card { index: 0, name: "NVIDIA H100".into(), memory: 1, compute_capability: (9, 0), usable: Ok(()) };
        let found = Probe {
            driver: Ok("550.54.15 for CUDA 12.4".into()),
            cublaslt: Ok("12.4".into()),
            cards: vec![card.clone(), card],
        };
        let recorded = gpus(&found, &kinds(&found, 1)).to_string();
        assert_eq!(recorded, "GPU: NVIDIA H100, driver 550.54.15 for CUDA 12.4, cuBLASLt 12.4");
        assert_eq!(kinds(&found, 2), ["2 x NVIDIA H100"]);
        assert_eq!(kinds(&found, 3), ["2 x NVIDIA H100", "unknown"]);
    }
}
