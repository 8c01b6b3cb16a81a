//! The machine's resources, and those allocated to a running stage. Plain data: the scheduler decides which stage gets what.

/// The resources that stages share.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Threads.
    pub(crate) cpus: usize,
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub(crate) gpus: Vec<String>,
    /// Bytes; `None` if unknown.
    pub(crate) memory: Option<u64>,
}

/// The resources that a running stage has until it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    pub(crate) cpus: usize,
    pub(crate) gpus: Vec<String>,
    pub(crate) memory: u64,
}
