//! The machine's settings: from the command line, then the environment, then `imp-flow.toml`, then what is detected.
//! Independent of pipelines: a pipeline means the same on every machine.

use std::path::{Path, PathBuf};

use imp_stages::contract::bytes::ByteSize;
use serde::Deserialize;

use crate::machine::Machine;

/// `imp-flow.toml` in the current folder.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    cache: Option<PathBuf>,
    artifacts: Option<PathBuf>,
    cpus: Option<usize>,
    gpus: Option<Vec<u32>>,
    memory: Option<ByteSize>,
    retries: Option<u32>,
    retry_seconds: Option<f64>,
    judge_endpoint: Option<String>,
}

const RETRIES: u32 = 2;
const RETRY_SECONDS: f64 = 10.0;

/// Folders, and how much of the machine may be used.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cache: PathBuf,
    pub(crate) artifacts: PathBuf,
    pub(crate) machine: Machine,
    /// How many times a stage is retried after a transient failure, and the first pause in seconds.
    pub(crate) retries: u32,
    pub(crate) retry_seconds: f64,
    /// Environment variables for the processes of stages.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// The variable in which stages look for the endpoint of a model that judges answers.
const JUDGE_ENDPOINT: &str = "IMP_FLOW_JUDGE_ENDPOINT";

impl Settings {
    /// # Errors
    /// If `imp-flow.toml` exists and can't be read.
    pub(crate) fn load(cache: Option<PathBuf>, artifacts: Option<PathBuf>) -> Result<Self, String> {
        let path = Path::new("imp-flow.toml");
        let file: File = match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| format!("imp-flow.toml: {error}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(error) => return Err(format!("imp-flow.toml: {error}")),
        };
        let threads = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            cache: cache.or(file.cache.map(at_home)).unwrap_or_else(|| "cache".into()),
            artifacts: artifacts.or(file.artifacts.map(at_home)).unwrap_or_else(|| "artifacts".into()),
            machine: Machine {
                cpus: file.cpus.unwrap_or_else(threads).max(1),
                gpus: file.gpus.map_or_else(gpus, |gpus| gpus.iter().map(ToString::to_string).collect()),
                memory: file.memory.map(|size| size.0).or_else(memory),
            },
            retries: file.retries.unwrap_or(RETRIES),
            retry_seconds: file
                .retry_seconds
                .filter(|seconds| seconds.is_finite())
                .unwrap_or(RETRY_SECONDS)
                .clamp(0.0, 3600.0),
            // A stage inherits the user's environment, which takes precedence.
            environment: file
                .judge_endpoint
                .filter(|_| std::env::var_os(JUDGE_ENDPOINT).is_none())
                .map(|endpoint| (JUDGE_ENDPOINT, endpoint))
                .into_iter()
                .collect(),
        })
    }
}

/// Expands `~/x`, since no shell does it in `imp-flow.toml`.
fn at_home(path: PathBuf) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path,
    }
}

/// The GPUs in `CUDA_VISIBLE_DEVICES`, else all that NVIDIA's driver lists.
fn gpus() -> Vec<String> {
    if let Ok(visible) = std::env::var("CUDA_VISIBLE_DEVICES") {
        return visible.split(',').map(str::trim).filter(|gpu| !gpu.is_empty()).map(Into::into).collect();
    }
    let found = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, |entries| entries.flatten().count());
    (0..found).map(|index| index.to_string()).collect()
}

/// Total memory in bytes; `None` on systems other than Linux.
fn memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kib << 10)
}
