//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.

mod driver;
mod error;

pub use error::DeviceError;
