//! The machine's own settings: the command line, then the environment, then `imp-flow.toml`, then defaults.
//! Never part of a pipeline: a pipeline means the same thing everywhere.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// `imp-flow.toml` in the current folder.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    cache: Option<PathBuf>,
    artifacts: Option<PathBuf>,
    cpus: Option<usize>,
    judge_endpoint: Option<String>,
}

/// Where things lie and how much of the machine may be used.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) cache: PathBuf,
    pub(crate) artifacts: PathBuf,
    pub(crate) cpus: usize,
    /// What stages find in their environment.
    pub(crate) environment: Vec<(&'static str, String)>,
}

/// Where stages look for the endpoint of a model that judges answers.
const JUDGE_ENDPOINT: &str = "IMP_FLOW_JUDGE_ENDPOINT";

impl Settings {
    /// # Errors
    /// If `imp-flow.toml` is there and can't be read.
    pub(crate) fn load(cache: Option<PathBuf>, artifacts: Option<PathBuf>) -> Result<Self, String> {
        let path = Path::new("imp-flow.toml");
        let file: File = match std::fs::read_to_string(path) {
            Ok(text) => toml::from_str(&text).map_err(|error| format!("imp-flow.toml: {error}"))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(error) => return Err(format!("imp-flow.toml: {error}")),
        };
        let machine = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Ok(Self {
            cache: cache.or(file.cache).unwrap_or_else(|| "cache".into()),
            artifacts: artifacts.or(file.artifacts).unwrap_or_else(|| "artifacts".into()),
            cpus: file.cpus.unwrap_or(machine).max(1),
            // The person's own environment reaches a stage as it is.
            environment: file
                .judge_endpoint
                .filter(|_| std::env::var_os(JUDGE_ENDPOINT).is_none())
                .map(|endpoint| (JUDGE_ENDPOINT, endpoint))
                .into_iter()
                .collect(),
        })
    }
}
