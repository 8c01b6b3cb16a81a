//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.

mod cuda;
mod driver;
#[cfg(feature = "emulated")]
mod emulated;
mod error;
#[cfg(all(test, feature = "emulated"))]
mod tests;

pub use cuda::{Card, Probe, probe};
pub use error::DeviceError;
