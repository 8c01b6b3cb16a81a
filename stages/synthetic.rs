//! The kind `synthetic`: a stage of adjustable duration and output, for tests and benchmarks of the runner, which need
//! pipelines of any shape and size. Exists only in their builds and is not one of [`crate::KINDS`].

use std::{fs, thread::sleep, time::Duration};

use imp_model::tensor::DeviceError;
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        event::Progress,
        figure::{Better, Figure},
        input::Input,
        stage::ConfigIssue,
    },
};

/// The kind `synthetic`.
#[derive(Debug)]
pub struct Synthetic;

/// The keys of `synthetic`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Determines the content of the output, together with the seed and the inputs.
    pub text: String,
    /// Whether the output is independent of the inputs.
    pub constant: bool,
    /// Number of small files to write.
    pub files: usize,
    /// Number of steps, each with a checkpoint.
    pub steps: usize,
    /// Duration of a step in milliseconds.
    pub step_ms: u64,
    /// A figure to report.
    pub score: Option<f64>,
    /// Fails with this message.
    pub fail: Option<String>,
    /// Number of transient failures before it succeeds.
    pub flaky: usize,
    /// Whether to abort the process, once.
    pub crash: bool,
    /// Whether to panic like an operation on a GPU whose memory is full.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub full_gpu: bool,
}

const VALUE: &str = "value.txt";

impl Stage for Synthetic {
    const KIND: &'static str = "synthetic";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "for tests and benchmarks of the runner";
    const INPUTS: &'static [Input] = &[Input::list("after", "the output of another `synthetic` stage")];
    const FIGURES: &'static [Figure] = &[Figure::headline("score", Better::Higher, "")];
    type Config = SyntheticConfig;

    fn check(config: &SyntheticConfig) -> Result<(), ConfigIssue> {
        if config.step_ms > 60_000 {
            return Err(ConfigIssue::new("step_ms", "must be at most a minute"));
        }
        Ok(())
    }

    fn cpus(_config: &SyntheticConfig) -> usize {
        1
    }

    /// So that tests see what the runner allocates.
    fn uses_gpu(_config: &SyntheticConfig, _count: &dyn Fn(&str) -> usize) -> bool {
        true
    }

    fn run(config: &SyntheticConfig, job: &Job) -> Result<(), StageError> {
        let mut hasher = blake3::Hasher::new();
        let mut step = read(&job.checkpoint().join("step"))?;
        tracing::info!("GPUs: {}", std::env::var("CUDA_VISIBLE_DEVICES").unwrap_or_default());
        fail_on_demand(config, job)?;
        while step < config.steps {
            job.check_cancelled()?;
            sleep(Duration::from_millis(config.step_ms));
            step += 1;
            // Renamed like real checkpoints, so that a kill leaves either the old or the new one.
            write(&job.checkpoint().join("next"), step.to_string())?;
            let named = job.checkpoint().join("step");
            fs::rename(job.checkpoint().join("next"), &named).map_err(StageError::io(&named))?;
            job.progress(Progress::new(step, config.steps, "steps"));
        }
        hasher.update(config.text.as_bytes()).update(&job.seed().to_le_bytes());
        for input in job.inputs("after").filter(|_| !config.constant) {
            let path = input.join(VALUE);
            hasher.update(&fs::read(&path).map_err(StageError::io(&path))?);
        }
        write(&job.output().join(VALUE), hasher.finalize().to_hex().to_string())?;
        for number in 0..config.files {
            let folder = job.output().join(format!("{:02}", number % 100));
            fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
            write(&folder.join(format!("{number:06}")), format!("{} {number}", config.text))?;
        }
        if let Some(score) = config.score {
            job.result("score", score);
        }
        Ok(())
    }
}

/// Fails as the configuration says.
fn fail_on_demand(config: &SyntheticConfig, job: &Job) -> Result<(), StageError> {
    if let Some(message) = &config.fail {
        tracing::info!("about to fail");
        return Err(StageError::failed(message, "remove `fail`"));
    }
    let count = job.checkpoint().join("tries");
    let tries = read(&count)?;
    write(&count, (tries + 1).to_string())?;
    if config.full_gpu {
        let full = DeviceError::OutOfMemory { needed: 12_000_000_000, free: 1_000_000_000, total: 24_000_000_000 };
        std::panic::panic_any(full);
    }
    if config.crash && tries == 0 {
        std::process::abort();
    }
    if tries < config.flaky {
        return Err(StageError::transient(format!("no luck at try {}", tries + 1), "try again"));
    }
    Ok(())
}

/// The number in a file; 0 if there is no such file.
fn read(path: &std::path::Path) -> Result<usize, StageError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(StageError::io(path)(error)),
    }
}

fn write(path: &std::path::Path, text: String) -> Result<(), StageError> {
    fs::write(path, text).map_err(StageError::io(path))
}
