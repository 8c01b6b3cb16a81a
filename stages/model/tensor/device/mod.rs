//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.
//!
//! - `driver.rs`: what a device must do.
//! - `cuda/`: a GPU through CUDA, whose libraries are loaded when a device is opened.
//! - `emulated.rs`: a device on the CPU, for tests. Only with the feature `emulated`, which needs a C++ compiler.
//! - `kernels/`: the kernels in CUDA C++. `kernels.ptx` is made of them by `.ci/ptx`; the emulated device runs them too.

mod cuda;
mod driver;
#[cfg(feature = "emulated")]
mod emulated;
mod error;
#[cfg(all(test, feature = "emulated"))]
mod tests;

pub use cuda::{Card, Probe, probe};
pub use error::DeviceError;
