//! Where matrices lie, and in which precision products with them are computed. Weights are moved to their place once, by
//! [`crate::Imp::move_to`]; from there the place passes to everything that is computed with them.

use super::device::Device;
use crate::precision::Precision;

/// Where matrices lie, and in which precision products with them are computed. By default in host memory and f32.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The device; `None` is host memory.
    pub device: Option<Device>,
    /// The precision of products.
    pub precision: Precision,
}

impl Place {
    /// Host memory: the CPU computes.
    pub fn host(precision: Precision) -> Self {
        Self { device: None, precision }
    }

    /// A device's memory: the device computes.
    pub fn device(device: Device, precision: Precision) -> Self {
        Self { device: Some(device), precision }
    }

    /// Does work that computes at this place: on the host on a thread of its pool. Each operation of another thread would wake one
    /// up and wait for it, which takes as long as a small operation itself.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.device {
            None => rayon::scope(|_| work()),
            Some(_) => work(),
        }
    }
}
