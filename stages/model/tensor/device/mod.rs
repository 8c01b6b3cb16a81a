//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.

#[allow(dead_code, unsafe_code, reason = "the devices that implement it are being written")]
mod driver;
mod error;

pub use error::DeviceError;
