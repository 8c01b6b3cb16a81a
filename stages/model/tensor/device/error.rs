//! What can go wrong on a device, in words.

/// A fault of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is no such device, or a library for it is missing.
    #[error("{0}")]
    Unavailable(String),
    /// Its kernels can't compute this model.
    #[error("a GPU can't compute this model: {0}")]
    Unsupported(String),
    /// Its memory is full.
    #[error("the GPU's memory is full: {}{free} of {total} bytes are free", needed_words(*needed))]
    OutOfMemory {
        /// Bytes of the request that failed; 0 if they are the driver's own, and not known.
        needed: u64,
        /// Bytes that were free.
        free: u64,
        /// Bytes of memory.
        total: u64,
    },
    /// A call failed.
    #[error("the GPU failed in {call}: {reason}")]
    Failed {
        /// What was called.
        call: String,
        /// What the driver said.
        reason: String,
    },
}

fn needed_words(needed: u64) -> String {
    if needed == 0 { String::new() } else { format!("{needed} bytes were needed, ") }
}
