//! What a kind of stage is.
//! Independent of who runs stages and where their folders come from.

use serde::{Serialize, de::DeserializeOwned};

use super::{
    error::StageError,
    figure::Figure,
    forecast::{Ahead, Forecast},
    input::Input,
    job::Job,
    keys::Key,
    published::{PublishedTable, Shown},
    setting::Setting,
};

/// A kind of stage: its configuration and the work that it does.
///
/// A stage is a function from its configuration, seed and input folders to its output folder. The same
/// arguments must give the same bytes: no times, host names or absolute paths in outputs (those belong
/// in metrics and logs, which are kept beside the artifact).
pub trait Stage: 'static {
    /// The value of `kind` in a pipeline.
    const KIND: &'static str;
    /// Raised when the same arguments give different bytes than before.
    const VERSION: u32;
    /// One line for `--help` and `imp-flow kinds`.
    const ABOUT: &'static str;
    /// The keys whose values name other stages.
    const INPUTS: &'static [Input];
    /// The other keys. Must use `deny_unknown_fields`, and defaults for everything that has one.
    type Config: Serialize + DeserializeOwned + Send + Sync + 'static;
    /// Names that other programs give to what its keys say, and what to write here, for messages.
    const FOREIGN_KEYS: &'static [(&'static str, &'static str)] = &[];
    /// The figures that it reports with [`Job::result`]. They describe old receipts, too: a name keeps its meaning.
    const FIGURES: &'static [Figure] = &[];
    /// The settings of the machine that it reads.
    const SETTINGS: &'static [Setting] = &[];
    /// The tables of published results in which its own results are shown.
    const TABLES: &'static [&'static PublishedTable] = &[];

    /// The reference of the other keys.
    fn keys() -> Vec<Key> {
        Vec::new()
    }

    /// Checks what types can't express: ranges, and keys that exclude each other. Runs before any stage.
    ///
    /// # Errors
    /// Names the key at fault.
    fn check(_config: &Self::Config) -> Result<(), ConfigIssue> {
        Ok(())
    }

    /// Checks keys that need an input, and inputs that need a key. `count` gives the number of inputs of a name.
    ///
    /// # Errors
    /// Names the key at fault.
    fn check_inputs(_config: &Self::Config, _count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        Ok(())
    }

    /// The user's files and folders in the configuration. Their content is part of the key; a relative path is resolved
    /// against the folder of the pipeline file.
    fn sources(_config: &Self::Config) -> Vec<String> {
        Vec::new()
    }

    /// Threads that it can use; 0 for all. Stages that wait for a network or a disk leave room for others.
    fn cpus(_config: &Self::Config) -> usize {
        0
    }

    /// Whether it can compute on a GPU. `count` gives the number of inputs of a name.
    fn uses_gpu(_config: &Self::Config, _count: &dyn Fn(&str) -> usize) -> bool {
        false
    }

    /// Whether it computes on all GPUs that it is given, and not only on the first.
    fn uses_all_gpus() -> bool {
        false
    }

    /// The shards of a stage whose configuration splits it: each becomes a stage of its own, so that they can run in
    /// parallel.
    fn shards(_config: &Self::Config) -> Option<Shards<Self::Config>> {
        None
    }

    /// What it will produce and need, as far as known. Must be quick and have no effects.
    fn forecast(_config: &Self::Config, _ahead: &Ahead<'_>) -> Forecast {
        Forecast::default()
    }

    /// Where its results are shown beside published ones, if anywhere.
    fn shown_as(_config: &Self::Config) -> Option<Shown> {
        None
    }

    /// Ends what a killed attempt may have left running in its folder `work`. Called before the output folder is emptied.
    ///
    /// # Errors
    /// If it goes on, so that nothing may be written there.
    fn prepare(_work: &std::path::Path) -> Result<(), StageError> {
        Ok(())
    }

    /// Does the work. Long work calls [`Job::progress`] and [`Job::check_cancelled`] often.
    ///
    /// # Errors
    /// [`StageError::Cancelled`] after a checkpoint was saved, else what went wrong.
    fn run(config: &Self::Config, job: &Job) -> Result<(), StageError>;
}

/// How a stage is split into shards.
#[derive(Debug)]
pub struct Shards<C> {
    /// The configurations of the shards. They have all inputs of the stage.
    pub configs: Vec<C>,
    /// The input that only the shards have.
    pub input: &'static str,
    /// The list of inputs that the stage has instead: the outputs of its shards, in order.
    pub outputs: &'static str,
}

/// A value of the right type that can't be used.
#[derive(Debug, Clone)]
pub struct ConfigIssue {
    /// Dotted path of the key inside the stage, such as `lora.rank`.
    pub key: String,
    /// What is wrong, as in `must be between 0 and 1`.
    pub message: String,
}

impl ConfigIssue {
    /// An issue with `key`.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }
}
