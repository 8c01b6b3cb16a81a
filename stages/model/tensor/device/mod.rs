//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.

mod driver;
#[cfg(feature = "emulated")]
mod emulated;
mod error;
#[cfg(all(test, feature = "emulated"))]
mod tests;

pub use error::DeviceError;
