//! Everything that a running stage is given: folders, seed, runtime settings, and a way to report.
//! Independent of the store, the pipeline and the terminal.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use serde::{Deserialize, Serialize};

use super::{
    bytes::ByteSize,
    device::{Device, DeviceChoice, Environment},
    error::StageError,
    event::{Event, Progress},
    executor::{Executor, SlurmOptions},
    input::Input,
    keys::{Key, Keys, keys, with_table},
    metrics::Metrics,
    output::Output,
};

/// The job file. This and the names below are those of a work folder: the runner and its stages agree on them here.
pub const JOB: &str = "job.json";
/// The folder of the output, empty at the start.
pub const OUT: &str = "out";
/// The folder of saved state, which outlives a crash.
pub const CHECKPOINT: &str = "checkpoint";
/// What the stage's process writes to standard error.
pub const LOG: &str = "log";
/// The metrics by step, as JSON lines.
pub const METRICS: &str = "metrics.jsonl";
/// Held by the one process that works in the folder.
pub const LOCK: &str = "lock";
/// The event file for TensorBoard, in the work folder: TensorBoard finds such files by this beginning.
pub const EVENTS: &str = "events.out.tfevents.imp-flow";

/// A job as the scheduler writes it to disk. The same file runs unchanged in any process that sees its paths.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// Kind of stage.
    pub kind: String,
    /// Its canonical configuration.
    pub config: serde_json::Value,
    /// Settings that are not part of the key.
    pub runtime: Runtime,
    /// Where it computes, which the runner has decided.
    #[serde(default)]
    pub device: Device,
    /// Workers that share its computation, on a device each. Several on the CPU, which share it, are for tests.
    #[serde(default = "one")]
    pub workers: usize,
    /// Input folders by name.
    pub inputs: BTreeMap<String, InputFolder>,
    /// The user's own files in the configuration: path as written -> absolute path.
    pub sources: BTreeMap<String, PathBuf>,
    /// Where the stage works: `out/`, `checkpoint/`, `metrics.jsonl`, `log`, `lock`.
    pub work: PathBuf,
    /// Seed for everything random.
    pub seed: u64,
}

fn one() -> usize {
    1
}

/// An input: a folder, and the path that the user knows it by.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFolder {
    /// The folder (read-only).
    pub path: PathBuf,
    /// Its path in messages: the user's own folder if it is a copy of one, else the artifact's link.
    pub origin: PathBuf,
}

keys! {
    /// `[stages.NAME.runtime]`: settings that do not affect the result, and so are not part of the key.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Runtime {
        /// CPU threads to use; 0 for all.
        pub cpus: usize = 0,
        /// GPUs to reserve, if the machine has any. `pretrain`, `finetune`, `eval` and cached features of `preprocess` compute on
        /// all of them, and their results are the same to the bit for each number of equal GPUs, as long as `micro_batch_size` is;
        /// kinds that don't train or run a model compute on the CPU.
        pub gpus: usize = 0,
        /// Where the stage computes (default: the machine's `device`, else `auto`). `auto`: on a GPU if `gpus` reserves one and
        /// it can be used, else on the CPU. `cuda`: on a GPU, with `gpus` at least 1; without a GPU the run is refused.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub device: Option<DeviceChoice> = None,
        /// Memory that the stage needs. Stages that need more than the machine has do not run at the same time.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub memory: Option<ByteSize> = None,
        /// Where the stage's process runs (default: the machine's `executor`). `local`: on this machine. `slurm`: as a job on a
        /// node of the cluster.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub executor: Option<Executor> = None,
        /// What Slurm is asked for, laid over `[slurm]` in `imp-flow.toml`.
        #[serde(skip_serializing_if = "SlurmOptions::is_empty")]
        pub slurm: SlurmOptions = SlurmOptions::default(),
        /// Samples that go through the model in one pass; 0 chooses by the size of the model, on a GPU by its memory. It changes the
        /// order of sums, and so results by rounding only. On the CPU, passes of a model of up to 16 million weights run at the same
        /// time.
        pub micro_batch_size: usize = 0,
        /// Steps between checkpoints; 0 for checkpoints by time only.
        pub checkpoint_steps: usize = 0,
        /// Seconds between checkpoints.
        pub checkpoint_seconds: f64 = 10.0,
        /// Number of checkpoints to keep until the stage is done.
        pub keep_checkpoints: usize = 1,
        /// Whether the backward pass recomputes the language model's blocks instead of keeping them (default: for models
        /// of a billion weights and more; on a GPU, where the memory needs it). The result is the same to the bit.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub gradient_checkpointing: Option<bool> = None,
        /// Steps between lines in `metrics.jsonl`.
        pub log_steps: usize = 1,
    }
}

impl Runtime {
    /// All keys, with those of its tables.
    pub fn all_keys() -> Vec<Key> {
        let none = serde_json::json!({});
        with_table(Self::keys(&none), "slurm", SlurmOptions::keys(&none))
    }
}

/// Receives the events of a stage.
pub trait Sink: Send + Sync {
    /// Called for every event, from any thread.
    fn send(&self, event: Event);
}

impl<F: Fn(Event) + Send + Sync> Sink for F {
    fn send(&self, event: Event) {
        self(event);
    }
}

/// A running stage's view of the world.
pub struct Job {
    spec: JobSpec,
    output: Output,
    sink: Box<dyn Sink>,
    cancel: Arc<AtomicBool>,
    metrics: Mutex<Option<Metrics>>,
}

impl Job {
    /// A job that reports to `sink` and stops soon after `cancel` becomes true.
    pub fn new(spec: JobSpec, sink: Box<dyn Sink>, cancel: Arc<AtomicBool>) -> Self {
        Self { output: Output::new(spec.work.join(OUT), false), spec, sink, cancel, metrics: Mutex::new(None) }
    }

    /// The same job with its output in another folder, which exists and is empty, until it is complete.
    #[must_use]
    pub fn with_output(self, folder: PathBuf) -> Self {
        Self { output: Output::new(folder, true), ..self }
    }

    /// The folder of a required input.
    ///
    /// # Errors
    /// If the job file lacks it, which the checks of a pipeline rule out.
    pub fn input(&self, name: &str) -> Result<&Path, StageError> {
        self.optional_input(name).ok_or_else(|| {
            StageError::failed(format!("the job has no input `{name}`"), "run it through `imp-flow run`")
        })
    }

    /// The folder of an input, if the pipeline gives it.
    pub fn optional_input(&self, name: &str) -> Option<&Path> {
        self.spec.inputs.get(name).map(|input| input.path.as_path())
    }

    /// The folders of a list of inputs, in the pipeline's order.
    pub fn inputs<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Path> + 'a {
        let listed = (0..).map_while(move |index| self.optional_input(&Input::name_at(name, index)));
        self.optional_input(name).into_iter().chain(listed)
    }

    /// The absolute path of a user's file or folder, by its path in the configuration.
    ///
    /// # Errors
    /// If [`crate::Stage::sources`] did not announce it.
    pub fn source(&self, as_written: &str) -> Result<&Path, StageError> {
        self.spec.sources.get(as_written).map(PathBuf::as_path).ok_or_else(|| {
            StageError::failed(format!("the job has no source `{as_written}`"), "run it through `imp-flow run`")
        })
    }

    /// The path that the user knows a file in an input folder by. For messages.
    pub fn named(&self, path: &Path) -> PathBuf {
        self.spec
            .inputs
            .values()
            .find_map(|input| path.strip_prefix(&input.path).ok().map(|rest| input.origin.join(rest)))
            .unwrap_or_else(|| path.to_path_buf())
    }

    /// A file in an input folder as `INPUT/PATH`, which is the same wherever the job runs. `None` for other files, and for
    /// paths that are no text.
    pub fn in_input(&self, path: &Path) -> Option<String> {
        self.spec.inputs.iter().find_map(|(name, input)| {
            let rest = path.strip_prefix(&input.path).ok()?;
            Some(format!("{name}/{}", rest.to_str()?))
        })
    }

    /// The same error, with a path in an input folder as the user knows it.
    #[must_use]
    pub fn renamed(&self, error: StageError) -> StageError {
        match error {
            StageError::Input { file, line, message, help } => {
                StageError::Input { file: self.named(&file), line, message, help }
            }
            other => other,
        }
    }

    /// The output folder: exists and is empty at the start.
    pub fn output(&self) -> PathBuf {
        self.output.folder().to_path_buf()
    }

    /// A folder that outlives a crash; empty on the first try.
    pub fn checkpoint(&self) -> PathBuf {
        self.spec.work.join(CHECKPOINT)
    }

    /// Links a file of an input folder into the output folder; copies it where the disk does not allow that.
    ///
    /// # Errors
    /// If it can be neither linked nor copied.
    pub fn link_into_output(&self, file: &Path, relative: impl AsRef<Path>) -> Result<(), StageError> {
        self.output.link(file, relative.as_ref())
    }

    /// Moves a complete file from the checkpoint into the output folder. If that is elsewhere ([`Job::with_output`]), the file stays until
    /// the output is in its place, and must not be changed.
    ///
    /// # Errors
    /// If it can't be moved.
    pub fn move_into_output(&self, file: &Path, relative: impl AsRef<Path>) -> Result<(), StageError> {
        self.output.take(file, relative.as_ref())
    }

    /// Files that are in an output folder given by [`Job::with_output`] as symbolic links only, by their paths in it.
    pub fn linked(&self) -> BTreeMap<PathBuf, PathBuf> {
        self.output.linked()
    }

    /// The seed of the stage.
    pub fn seed(&self) -> u64 {
        self.spec.seed
    }

    /// Settings that do not affect the result.
    pub fn runtime(&self) -> &Runtime {
        &self.spec.runtime
    }

    /// Where the stage computes.
    pub fn device(&self) -> Device {
        self.spec.device
    }

    /// Workers that share the stage's computation, at least one.
    pub fn workers(&self) -> usize {
        self.spec.workers.max(1)
    }

    /// Records what the stage computes on, for its receipt, and for its log if that is a GPU.
    pub fn environment(&self, environment: Environment) {
        match environment.device {
            // The usual case. The end of a log is shown when a stage fails, and should say what is special.
            Device::Cpu => tracing::debug!("computes on the {environment}"),
            Device::Cuda => tracing::info!("computes on the {environment}"),
        }
        self.sink.send(Event::Environment(environment));
    }

    /// Whether the stage was told to stop.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    /// For loops without a checkpoint: ends the stage if it was told to stop.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] if it was.
    pub fn check_cancelled(&self) -> Result<(), StageError> {
        if self.cancelled() { Err(StageError::Cancelled) } else { Ok(()) }
    }

    /// Reports progress. Cheap enough to be called for every unit: the runner thins it out.
    pub fn progress(&self, progress: Progress) {
        self.sink.send(Event::Progress(progress));
    }

    /// Records a final figure, kept with the receipt. One that is not finite has no place there, which is told.
    pub fn result(&self, name: &str, value: f64) {
        if !value.is_finite() {
            return self.caution(format!("its figure `{name}` is {value}, and is left out"));
        }
        self.sink.send(Event::Result { name: name.into(), value });
    }

    /// Warns the user. The stage continues.
    pub fn warn(&self, message: impl Into<String>) {
        self.sink.send(Event::Warning { message: message.into() });
    }

    /// Warns the user of something that is true of the result itself: the warning is kept with the receipt and shown again
    /// whenever the result is taken from the cache.
    pub fn caution(&self, message: impl Into<String>) {
        self.sink.send(Event::Caution { message: message.into() });
    }

    /// Says that the output may lack something. Stages after it use it in this run, but the next run makes it again.
    pub fn unchecked(&self, message: impl Into<String>) {
        self.sink.send(Event::Unchecked { message: message.into() });
    }

    /// Opens `metrics.jsonl` and drops the lines after `last_step`, which a resumed run writes again, and everything after a
    /// line that can't be read. TensorBoard's event file is rewritten from the rest.
    ///
    /// # Errors
    /// If the file can't be read or written.
    pub fn open_metrics(&self, last_step: u64) -> Result<(), StageError> {
        let (lines, events) = (self.spec.work.join(METRICS), self.spec.work.join(EVENTS));
        let (metrics, is_cut) = Metrics::open(&lines, &events, last_step)?;
        if is_cut {
            self.warn(format!("{}: cut off from the first damaged line", lines.display()));
        }
        *self.metrics.lock().unwrap_or_else(PoisonError::into_inner) = Some(metrics);
        Ok(())
    }

    /// Adds a line to `metrics.jsonl`, after [`Job::open_metrics`].
    ///
    /// # Errors
    /// If it can't be written.
    pub fn metrics(&self, step: u64, values: &[(&str, f64)]) -> Result<(), StageError> {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(metrics) = metrics.as_mut() else { return Ok(()) };
        metrics.add(step, values).map_err(StageError::io(&self.spec.work.join(METRICS)))
    }
}
