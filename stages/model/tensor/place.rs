//! Where matrices lie, and in which precision products with them are computed. Weights are moved to their place once, by
//! [`crate::Imp::move_to`]; from there the place passes to everything that is computed with them.

use super::device::{Device, Repeats};
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

    /// For work in rounds that are alike, such as the tokens of an answer.
    pub fn repeats(&self) -> Repeats {
        Repeats::on(self.device.as_ref())
    }

    /// Does work that computes at this place: on the host, if the pool has a single thread, on that one. Each operation of another
    /// thread would wake it up and wait for it, which takes as long as a small operation itself. With more threads the work stays
    /// where it is: now one, now another would take it, and each would keep the memory that it has needed.
    pub fn run<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        if self.device.is_none() && rayon::current_num_threads() == 1 { rayon::scope(|_| work()) } else { work() }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn work_moves_to_the_pool_only_if_that_has_one_thread() {
        let here = thread::current().id();
        let there = Place::default().run(|| thread::current().id());
        assert_eq!(here != there, rayon::current_num_threads() == 1);
    }
}
