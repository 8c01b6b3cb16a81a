//! Where a stage computes, and how exactly. Kinds load their models through [`Place`] only, so that the device and the precision
//! of a model are decided in one file. Independent of kinds and of who allocates devices.

mod cpu;
mod fault;
mod probe;

use std::path::Path;

use imp_model::{Imp, Precision, Result as ModelResult, config::ImpConfig, load_vision, vision::Siglip};

pub use self::{
    cpu::{Cpu, Feature},
    fault::{fault, is_fault},
    probe::{Card, Probe, probe},
};
use crate::{
    Job, StageError,
    contract::device::{Device, Environment},
};

/// Where a stage computes, and how exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The device that the runner has given to the stage.
    pub device: Device,
    /// The precision in its configuration.
    pub precision: Precision,
}

/// The place of a stage with this precision. The device is ready when this returns, and is recorded for the receipt.
pub(crate) fn place(job: &Job, precision: Precision) -> Result<Place, StageError> {
    let place = Place { device: job.device(), precision };
    job.environment(apply(place)?);
    Ok(place)
}

/// Prepares the device and the precision for the models that this process loads. Returns what they are computed on.
///
/// # Errors
/// If this build can't do it: a stage must not finish in another precision or on another device than it says.
fn apply(place: Place) -> Result<Environment, StageError> {
    if place.device == Device::Cuda {
        let message = "this build of imp-flow can't compute on a GPU";
        return Err(StageError::failed(message, "run it on the CPU: `--device cpu`"));
    }
    if place.precision == Precision::Bf16 {
        let message = "bf16 is not available in this build of imp-flow";
        return Err(StageError::failed(message, "set `precision = \"f32\"`, or remove `precision`"));
    }
    Ok(cpu::Cpu::detect().environment())
}

#[expect(clippy::unused_self, reason = "only a GPU and bf16 change how a model is loaded, and `apply` refuses both")]
impl Place {
    /// See [`Imp::load`].
    pub(crate) fn load(self, folder: &Path) -> ModelResult<Imp> {
        Imp::load(folder)
    }

    /// See [`Imp::assemble`].
    pub(crate) fn assemble(self, llm: &Path, vision: &Path, config: ImpConfig, seed: u64) -> ModelResult<Imp> {
        Imp::assemble(llm, vision, config, seed)
    }

    /// See [`load_vision`].
    pub(crate) fn load_vision(self, folder: &Path, config: &ImpConfig) -> ModelResult<Siglip> {
        load_vision(folder, config)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::testing::Trial;

    #[test]
    fn what_this_build_cannot_do_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let job = Trial::new(&root.path().join("work"), &[]).job();
        assert_eq!(place(&job, Precision::F32).unwrap(), Place { device: Device::Cpu, precision: Precision::F32 });
        let error = place(&job, Precision::Bf16).unwrap_err();
        assert_eq!(error.to_string(), "bf16 is not available in this build of imp-flow");
        assert!(error.help().is_some_and(|help| help.contains("f32")));
        let error = apply(Place { device: Device::Cuda, precision: Precision::F32 }).unwrap_err();
        assert_eq!(error.to_string(), "this build of imp-flow can't compute on a GPU");
    }
}
