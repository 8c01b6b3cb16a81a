//! Faults of a device as errors of the stage. Operations on matrices can't return errors: they panic with a [`DeviceError`].
//! Independent of what was computed.

use std::any::Any;

use imp_model::tensor::DeviceError;

use crate::{StageError, contract::bytes::ByteSize};

/// How a stage needs less of a GPU's memory.
const LESS_MEMORY: &str = "lower it with a smaller `micro_batch_size` or `gradient_checkpointing = true` under \
    [stages.NAME.runtime], with `precision = \"bf16\"`, or with a quantized model as the base; or run it on the CPU with \
    `device = \"cpu\"` there";
/// What to do where the kernels end.
const CPU: &str = "run it on the CPU: `device = \"cpu\"` under [stages.NAME.runtime]";
/// What to do if there is no such device.
const LOOK: &str = "`imp-flow doctor` shows what is missing";
/// What to do after a failed call.
const AGAIN: &str = "run the same command again, which resumes from the last checkpoint; if it fails again, look for `Xid` in \
    the kernel's messages (`sudo dmesg`), or run it on the CPU with `--device cpu`";

/// Whether a panic is the fault of a device, and so no bug.
pub fn is_fault(panic: &(dyn Any + Send)) -> bool {
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
            let [needed, free, total] = [*needed, *free, *total].map(ByteSize);
            let message = format!("the GPU's memory is full: {needed} were needed, {free} of {total} are free");
            StageError::failed(message, LESS_MEMORY)
        }
        DeviceError::Failed { .. } => StageError::failed(fault.to_string(), AGAIN),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

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
    fn other_faults_keep_their_words_and_other_panics_are_none() {
        let failed = DeviceError::Failed { call: "cuMemAlloc".into(), reason: "unspecified launch failure".into() };
        let error = caught(Box::new(failed)).unwrap();
        assert_eq!(error.to_string(), "the GPU failed in cuMemAlloc: unspecified launch failure");
        let error = caught(Box::new(DeviceError::Unavailable("libcuda.so.1 is missing".into()))).unwrap();
        assert_eq!((error.to_string().as_str(), error.help()), ("libcuda.so.1 is missing", Some(LOOK)));
        assert!(caught(Box::new("index out of bounds")).is_none());
    }
}
