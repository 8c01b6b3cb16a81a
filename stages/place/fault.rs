//! Faults of a device as errors of the stage. Operations on matrices can't return errors: they panic with a [`DeviceError`].
//! Independent of what was computed.

use std::{
    any::Any,
    panic::{self, AssertUnwindSafe, catch_unwind, resume_unwind},
};

use imp_model::tensor::DeviceError;

use crate::{StageError, contract::bytes::ByteSize};

/// How a stage needs less of a GPU's memory.
const LESS_MEMORY: &str = "lower it with a smaller `micro_batch_size` or `gradient_checkpointing = true` under \
    [stages.NAME.runtime], with `precision = \"bf16\"`, or with a quantized model as the base; or run it on the CPU with \
    `device = \"cpu\"` there";
/// What to do where the kernels end.
const CPU: &str = "run it on the CPU: `device = \"cpu\"` under [stages.NAME.runtime]";
/// What to do where a model is asked that a GPU can't hold or compute.
const ASK_ON_CPU: &str = "ask it on the CPU with `--device cpu`";
/// What to do if there is no such device.
const LOOK: &str = "`imp-flow doctor` shows what is missing";
/// What to do after a failed call.
const AGAIN: &str = "run the same command again, which resumes from the last checkpoint; if it fails again, look for `Xid` in \
    the kernel's messages (`sudo dmesg`), or run it on the CPU with `--device cpu`";

/// What `work` returns, or the fault of a device that it ended in.
///
/// # Errors
/// The fault, for someone who asks a model.
///
/// # Panics
/// With any other panic of `work`.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, StageError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| match panic.downcast::<DeviceError>() {
        Ok(fault) => asking(&fault),
        Err(panic) => resume_unwind(panic),
    })
}

/// The error for someone who asks a model, which is no stage.
pub(super) fn asking(fault: &DeviceError) -> StageError {
    let help = match fault {
        DeviceError::Unavailable(_) => format!("{LOOK}; {ASK_ON_CPU}"),
        DeviceError::Unsupported(_) | DeviceError::Failed { .. } => ASK_ON_CPU.into(),
        DeviceError::OutOfMemory { .. } => {
            format!("ask a quantized model, or with `--precision bf16`; {ASK_ON_CPU}")
        }
    };
    StageError::failed(error(fault).to_string(), help)
}

/// Keeps faults of devices off the standard error of this process: they are reported as errors, and look like bugs there.
pub fn hush_faults() {
    let usual = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !is_fault(info.payload()) {
            usual(info);
        }
    }));
}

/// Whether a panic is the fault of a device, and so no bug.
fn is_fault(panic: &(dyn Any + Send)) -> bool {
    panic.is::<DeviceError>()
}

/// The error for a stage that ended in `panic`, if that is the fault of a device.
pub fn fault(panic: &(dyn Any + Send)) -> Option<StageError> {
    panic.downcast_ref::<DeviceError>().map(error)
}

pub(super) fn error(fault: &DeviceError) -> StageError {
    match fault {
        DeviceError::Unavailable(_) => StageError::failed(fault.to_string(), LOOK),
        DeviceError::Unsupported(_) => StageError::failed(fault.to_string(), CPU),
        DeviceError::OutOfMemory { needed, free, total } => {
            let [words, free, total] = [*needed, *free, *total].map(ByteSize);
            // What the driver needs for itself it does not say.
            let needed = if *needed == 0 { String::new() } else { format!("{words} were needed, ") };
            let message = format!("the GPU's memory is full: {needed}{free} of {total} are free");
            StageError::failed(message, LESS_MEMORY)
        }
        DeviceError::Failed { .. } => StageError::failed(fault.to_string(), AGAIN),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn caught(payload: Box<dyn Any + Send>) -> Option<StageError> {
        // From a thread of rayon, since operations may run there.
        let panic = catch_unwind(AssertUnwindSafe(|| rayon::join(|| resume_unwind(payload), || ()))).unwrap_err();
        assert_eq!(is_fault(panic.as_ref()), fault(panic.as_ref()).is_some());
        fault(panic.as_ref())
    }

    #[test]
    fn a_full_gpu_is_an_error_with_sizes_and_remedies() {
        let full = DeviceError::OutOfMemory { needed: 12_300_000_000, free: 400_000_000, total: 85_000_000_000 };
        let error = caught(Box::new(full)).unwrap();
        let words = "the GPU's memory is full: 12.3 GB were needed, 400 MB of 85.0 GB are free";
        assert_eq!(error.to_string(), words);
        let help = error.help().unwrap();
        for knob in ["micro_batch_size", "gradient_checkpointing = true", "precision = \"bf16\"", "quantized"] {
            assert!(help.contains(knob), "{help}");
        }
    }

    #[test]
    fn who_asks_a_model_is_told_what_to_change_there() {
        let full = DeviceError::OutOfMemory { needed: 12_300_000_000, free: 400_000_000, total: 85_000_000_000 };
        let error = guarded::<()>(|| panic::panic_any(full)).unwrap_err();
        assert_eq!(error.to_string(), "the GPU's memory is full: 12.3 GB were needed, 400 MB of 85.0 GB are free");
        assert_eq!(
            error.help(),
            Some("ask a quantized model, or with `--precision bf16`; ask it on the CPU with `--device cpu`")
        );
        assert_eq!(guarded(|| 7).unwrap(), 7);
        let bug = catch_unwind(|| guarded::<()>(|| panic!("index out of bounds"))).unwrap_err();
        assert_eq!(bug.downcast_ref::<&str>(), Some(&"index out of bounds"));
    }

    #[test]
    fn other_faults_keep_their_words_and_other_panics_are_none() {
        let failed = DeviceError::Failed { call: "cuMemAlloc".into(), reason: "unspecified launch failure".into() };
        let error = caught(Box::new(failed)).unwrap();
        assert_eq!(error.to_string(), "the GPU failed in cuMemAlloc: unspecified launch failure");
        let error = caught(Box::new(DeviceError::Unavailable("libcuda.so.1 is missing".into()))).unwrap();
        assert_eq!((error.to_string().as_str(), error.help()), ("libcuda.so.1 is missing", Some(LOOK)));
        assert!(caught(Box::new("index out of bounds")).is_none());
    }
}
