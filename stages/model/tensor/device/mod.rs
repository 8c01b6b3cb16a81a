//! Devices other than the host's CPU: their memory, their kernels, and how operations are launched on them.
//!
//! - `driver.rs`: the calls that a device must answer. `cuda/` does it with a GPU, whose libraries are loaded when it is
//!   opened; `emulated/` runs the same kernels on the CPU, for tests (feature `emulated`, which needs a C++ compiler).
//! - `uploads.rs`: the way of bytes to a device, through locked memory and beside what is being computed.
//! - `exchange.rs`: what passes between devices, and from a device to the host, beside what is being computed.
//! - `rounds.rs`, `pieces.rs`: what is called again and again, made as one.
//! - `profile.rs`: how long each kernel takes, if one asks; how often and how long the host waits for the device.
//! - `memory.rs`, `launch.rs`: buffers and matrices in them; kernels and products. Independent of which device it is.
//! - `ops/`: the operations of [`super::ops`] on matrices of a device, forward and backward.
//! - `kernels/`: the kernels, in CUDA C++. `kernels.ptx` is made of them by `.ci/ptx`.
//!
//! Calls return before they are done. Only reading a result waits.

mod cuda;
mod driver;
#[cfg(feature = "emulated")]
mod emulated;
mod error;
mod exchange;
mod launch;
mod memory;
pub(super) mod ops;
mod pieces;
mod profile;
mod rounds;
#[cfg(all(test, feature = "emulated"))]
mod tests;
mod uploads;
mod weight;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

pub use cuda::{Card, Probe};
pub(super) use driver::Type;
pub use error::DeviceError;
pub(super) use memory::{Buffer, DeviceGhost, DeviceMat};
pub use profile::{Spent, Waits};
pub use rounds::{Repeated, Repeats};
pub(super) use weight::DeviceWeight;

use crate::precision::Precision;
use driver::{Driver, Stream};
use exchange::Exchange;
use launch::must;
use rounds::Rounds;
use uploads::{Sizes, Uploads};

/// A device. Clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

struct Opened {
    driver: Box<dyn Driver>,
    /// Bytes of its memory.
    total: u64,
    /// Bytes of all buffers.
    live: AtomicU64,
    /// The most bytes of all buffers at one time.
    peak: AtomicU64,
    profile: profile::Profile,
    waits: profile::WaitCounter,
    uploads: Uploads,
    exchange: Exchange,
    rounds: Rounds,
}

/// The variable that makes emulated devices the machine's GPUs, in builds for tests. Its value is the order of threads and, after
/// a colon, the bytes of memory of each, separated by commas (one with 16 GiB).
#[cfg(feature = "emulated")]
const EMULATED: &str = "IMP_FLOW_EMULATED_GPU";

/// The order and the memories of the machine's emulated GPUs, if it is to have some.
#[cfg(feature = "emulated")]
fn emulated_gpus() -> Option<(u32, Vec<u64>)> {
    let value = std::env::var(EMULATED).ok()?;
    let (order, memories) = value.split_once(':').unwrap_or((&value, ""));
    let memories = memories.split(',').map(|memory| memory.parse().unwrap_or(16 << 30)).collect();
    Some((order.parse().ok()?, memories))
}

/// Looks for NVIDIA's driver, cuBLASLt and GPUs.
pub fn probe() -> Probe {
    #[cfg(feature = "emulated")]
    if let Some((_, memories)) = emulated_gpus() {
        return emulated::probe(&memories);
    }
    cuda::probe()
}

/// Bytes of a GPU's memory that no program uses, or why it does not start. Starts the GPU for that.
///
/// # Errors
/// In words.
pub fn free_bytes(index: usize) -> Result<u64, String> {
    #[cfg(feature = "emulated")]
    if let Some((_, memories)) = emulated_gpus() {
        return memories.get(index).copied().ok_or_else(|| format!("there is no GPU {index}"));
    }
    cuda::free_bytes(index)
}

impl Device {
    /// Opens the GPU with this number among the visible ones.
    ///
    /// # Errors
    /// If it or a library for it is missing, or it does not start.
    pub fn open(index: usize) -> Result<Self, DeviceError> {
        let rounds = Rounds::new()?;
        #[cfg(feature = "emulated")]
        if let Some((order, memories)) = emulated_gpus() {
            let missing =
                || DeviceError::Unavailable(format!("there is no GPU {index}: {} are emulated", memories.len()));
            let memory = memories.get(index).copied().ok_or_else(missing)?;
            return Ok(Self::emulated_with(order, memory, rounds));
        }
        let cuda = cuda::Cuda::open(index)?;
        let total = cuda.total_bytes()?;
        Ok(Self::new(Box::new(cuda), total, Sizes::GPU, rounds))
    }

    /// A device on the CPU, for tests, with `limit` bytes of memory. It runs the threads of a kernel first to last (`order`
    /// 0), last to first (1), or in another order.
    #[cfg(feature = "emulated")]
    pub fn emulated(order: u32, limit: u64) -> Self {
        Self::emulated_with(order, limit, Rounds::default())
    }

    #[cfg(feature = "emulated")]
    fn emulated_with(order: u32, limit: u64, rounds: Rounds) -> Self {
        Self::new(Box::new(emulated::Emulated::new(order).with_limit(limit)), limit, Sizes::EMULATED, rounds)
    }

    fn new(driver: Box<dyn Driver>, total: u64, uploads: Sizes, rounds: Rounds) -> Self {
        Self(Arc::new(Opened {
            driver,
            total,
            live: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            profile: profile::Profile::default(),
            waits: profile::WaitCounter::default(),
            uploads: Uploads::new(uploads),
            // Longer pieces, since what is exchanged is longer.
            exchange: Exchange::new(2 * uploads.slot),
            rounds,
        }))
    }

    /// Bytes of its memory.
    pub fn total_bytes(&self) -> u64 {
        self.0.total
    }

    /// Bytes of its memory that are in use now, without those of the driver itself.
    pub fn live_bytes(&self) -> u64 {
        self.0.live.load(Ordering::Relaxed)
    }

    /// The most bytes of its memory that were in use at one time, without those of the driver itself.
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// The driver, for calls that are made now, after those of a round.
    fn driver(&self) -> &dyn Driver {
        must(self.make_collected());
        &*self.0.driver
    }

    /// Takes memory, with undefined content, for what is called on `stream`.
    fn alloc(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        let of_round = stream == Stream::Compute;
        if let Some(address) = of_round.then(|| self.0.rounds.take(bytes)).flatten() {
            return Ok(address);
        }
        let address = match self.alloc_now(stream, bytes) {
            Err(DeviceError::OutOfMemory { .. }) if self.release_pieces()? => self.alloc_now(stream, bytes)?,
            other => other?,
        };
        if of_round {
            self.0.rounds.add(address, bytes);
        }
        Ok(address)
    }

    /// Gives it back.
    fn free(&self, address: u64, bytes: usize) {
        if !self.0.rounds.give_back(address, bytes) {
            self.free_now(address, bytes);
        }
    }

    fn alloc_now(&self, stream: Stream, bytes: usize) -> Result<u64, DeviceError> {
        let address = self.0.driver.alloc(stream, bytes)?;
        let live = self.0.live.fetch_add(bytes as u64, Ordering::Relaxed) + bytes as u64;
        self.0.peak.fetch_max(live, Ordering::Relaxed);
        Ok(address)
    }

    fn free_now(&self, address: u64, bytes: usize) {
        self.0.live.fetch_sub(bytes as u64, Ordering::Relaxed);
        self.0.driver.free(address, bytes);
    }
}

impl PartialEq for Device {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Device")
    }
}

/// How a device stores activations, and the operands of products, in this precision.
pub(super) fn stored_as(precision: Precision) -> Type {
    match precision {
        Precision::F32 => Type::F32,
        Precision::Bf16 => Type::Bf16,
    }
}
