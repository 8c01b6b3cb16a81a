//! Calls that a full GPU refuses.
#![allow(unsafe_code)]

use std::fmt::Display;

use cudarc::{
    cublaslt::{result::CublasError, sys::cublasStatus_t},
    driver::{
        result::{self, DriverError},
        sys::CUresult,
    },
};

use super::{Cuda, DeviceError, failed};

impl Cuda {
    /// Makes a call that may need memory of the GPU: `bytes` of it, if that is known. If there is too little, it is made again without
    /// what the pool keeps, which may be in pieces that are too small, or what the driver itself needs.
    pub(super) fn with_memory<T, E: Fault>(
        &self,
        name: &str,
        bytes: usize,
        mut call: impl FnMut() -> Result<T, E>,
    ) -> Result<T, DeviceError> {
        match call() {
            Ok(done) => return Ok(done),
            Err(error) if !error.is_full() => return Err(failed(name, &error)),
            Err(_) => {}
        }
        // A fault of an earlier call is what counts.
        self.give_back().map_err(|error| failed(name, &error))?;
        call().map_err(|error| refused(name, bytes, &error))
    }

    /// Gives back what the pool keeps.
    pub(super) fn give_back(&self) -> Result<(), DriverError> {
        self.finish_all()?;
        // SAFETY: the pool of `start`.
        unsafe { result::mem_pool::trim_to(self.pool, 0) }
    }
}

/// The error of a call that may have needed memory, so many bytes if that is known. The context is bound.
pub(super) fn refused(name: &str, bytes: usize, error: &impl Fault) -> DeviceError {
    match result::mem_get_info() {
        Ok((free, total)) if error.is_full() => {
            DeviceError::OutOfMemory { needed: bytes as u64, free: free as u64, total: total as u64 }
        }
        _ => failed(name, error),
    }
}

/// An error of a library.
pub(super) trait Fault: Display {
    /// Whether it is that the GPU's memory is full.
    fn is_full(&self) -> bool;
}

impl Fault for DriverError {
    fn is_full(&self) -> bool {
        self.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
    }
}

impl Fault for CublasError {
    fn is_full(&self) -> bool {
        self.0 == cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
    }
}
