//! Where a stage computes, and how exactly. Kinds open their place here only, and move their models to it. Independent of kinds
//! and of who allocates devices.

mod cpu;
mod fault;

use imp_model::{
    Precision,
    tensor::{Device as Opened, Place},
};

pub use self::{
    cpu::{Cpu, Feature, Native},
    fault::{fault, is_fault},
};
use crate::{
    Job, StageError,
    contract::device::{Device, Environment},
};
pub use imp_model::tensor::{Card, Probe, free_bytes, probe};

/// The number of a stage's GPU among those that it sees: the runner shows it only its own.
const FIRST: usize = 0;

/// The place of a stage with this precision. Its device is open when this returns, and is recorded for the receipt.
///
/// # Errors
/// If the device can't be opened.
pub(crate) fn place(job: &Job, precision: Precision) -> Result<Place, StageError> {
    match job.device() {
        Device::Cpu => {
            job.environment(cpu::Cpu::detect().environment());
            Ok(Place::host(precision))
        }
        Device::Cuda => {
            let opened = Opened::open(FIRST).map_err(|error| fault::error(&error))?;
            job.environment(gpu(&probe()));
            Ok(Place::device(opened, precision))
        }
    }
}

/// What is recorded of the GPU of this process.
fn gpu(probe: &Probe) -> Environment {
    let name = probe.cards.get(FIRST).map_or_else(|| "unknown".into(), |card| card.name.clone());
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
            assert_eq!(place(&job, precision).unwrap(), Place::host(precision));
        }
    }

    #[test]
    fn a_gpu_is_recorded_with_its_driver_and_library() {
        let card = Card { index: 0, name: "NVIDIA H100".into(), memory: 1, compute_capability: (9, 0), usable: Ok(()) };
        let found =
            Probe { driver: Ok("550.54.15 for CUDA 12.4".into()), cublaslt: Ok("12.4".into()), cards: vec![card] };
        assert_eq!(gpu(&found).to_string(), "GPU: NVIDIA H100, driver 550.54.15 for CUDA 12.4, cuBLASLt 12.4");
    }
}
