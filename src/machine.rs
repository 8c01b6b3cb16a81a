//! What a machine has, and what a running stage gets of it. Plain data; who gets what is the scheduler's business.

/// What the machine has to share out.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// Threads.
    pub(crate) cpus: usize,
    /// GPUs, as `CUDA_VISIBLE_DEVICES` names them.
    pub(crate) gpus: Vec<String>,
    /// Bytes; `None` where the system doesn't tell.
    pub(crate) memory: Option<u64>,
}

/// What a running stage has, until it is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) cpus: usize,
    pub(crate) gpus: Vec<String>,
    pub(crate) memory: u64,
}
