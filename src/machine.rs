//! The machine's resources, and those allocated to a running stage. Plain data: the scheduler decides which stage gets what.

use imp_stages::contract::device::DeviceChoice;

/// The resources that stages share.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Threads.
    pub(crate) cpus: usize,
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub(crate) gpus: Vec<String>,
    /// What gave this list of GPUs, in words, if they were not detected.
    pub(crate) gpus_from: Option<&'static str>,
    /// Why no stage can compute on a GPU, if that is so. Found out only if a stage asks for one.
    pub(crate) no_gpu: Option<String>,
    /// Memory of the smallest of its GPUs that stages can use, in bytes, if known.
    pub(crate) gpu_memory: Option<u64>,
    /// Bytes; `None` if unknown.
    pub(crate) memory: Option<u64>,
    pub(crate) device: DevicePolicy,
}

/// Where stages compute.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DevicePolicy {
    /// All stages, by the command line or the environment.
    pub(crate) all: Option<DeviceChoice>,
    /// Stages that don't say it themselves, by `imp-flow.toml`.
    pub(crate) others: Option<DeviceChoice>,
}

/// The resources that a running stage has until it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) cpus: usize,
    pub(crate) gpus: Vec<String>,
    pub(crate) memory: u64,
}
