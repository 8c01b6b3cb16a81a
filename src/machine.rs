//! The machine's resources, and those allocated to a running stage. Plain data: the scheduler decides which stage gets what.

use std::{collections::BTreeMap, time::Duration};

use imp_stages::contract::{
    device::DeviceChoice,
    executor::{Executor, SlurmOptions},
};

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
    pub(crate) elsewhere: Elsewhere,
}

/// Which stages run on other machines, and how they get there.
#[derive(Debug, Clone, Default)]
pub(crate) struct Elsewhere {
    /// Where stages run that don't say it themselves.
    pub(crate) executor: Executor,
    /// Why no stage can be sent elsewhere, and what to do, if that is so. Found out only if a stage is to be.
    pub(crate) unusable: Option<(String, String)>,
    pub(crate) cluster: Cluster,
}

/// A cluster: what is asked for on it, and how its jobs are followed.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    /// What is asked for by default.
    pub(crate) options: SlurmOptions,
    /// What is laid over that, by kind of stage.
    pub(crate) kinds: BTreeMap<String, SlurmOptions>,
    /// What is laid over that for a runner that is a job itself.
    pub(crate) runner: SlurmOptions,
    /// Kinds of stages that stay on this machine unless they say otherwise.
    pub(crate) local: Vec<String>,
    /// CPUs for stages that use all; the site's default if `None`.
    pub(crate) cpus: Option<usize>,
    /// The most jobs at once.
    pub(crate) jobs: usize,
    /// The time between two questions about all jobs.
    pub(crate) poll: Duration,
    /// How long before the end of its time a stage is asked to save a checkpoint.
    pub(crate) save: Duration,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            options: SlurmOptions::default(),
            kinds: BTreeMap::new(),
            runner: SlurmOptions::default(),
            // Nodes of many clusters don't reach the internet.
            local: vec!["download".into()],
            cpus: None,
            jobs: 200,
            poll: Duration::from_secs(10),
            save: Duration::from_mins(2),
        }
    }
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
    /// Whether it runs on another machine, and takes only a place among the jobs there.
    pub(crate) elsewhere: bool,
}
