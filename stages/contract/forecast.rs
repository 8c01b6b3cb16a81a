//! What is known of a stage before it runs: the sizes of what it will make, and the memory that it will take.
//! Reads configurations and headers only, and asks servers for little, so that a plan costs seconds at most.

use std::{collections::BTreeMap, path::PathBuf};

use imp_model::config::{ImpConfig, LanguageConfig, SiglipConfig};

use super::{input::Input, job::Runtime};

/// What a stage is asked before it runs.
#[derive(Debug)]
pub struct Ahead<'a> {
    /// Its runtime settings.
    pub runtime: &'a Runtime,
    /// Its seed.
    pub seed: u64,
    /// The user's own files that the configuration names: as written there -> absolute path.
    pub sources: &'a BTreeMap<String, PathBuf>,
    /// What its inputs are, or will be.
    pub inputs: BTreeMap<&'a str, &'a Outlook>,
}

impl Ahead<'_> {
    /// An input, if anything is known of it.
    pub(crate) fn input(&self, name: &str) -> Option<&Outlook> {
        self.inputs.get(name).copied()
    }

    /// A list of inputs.
    pub(crate) fn inputs(&self, name: &str) -> impl Iterator<Item = &Outlook> {
        self.inputs.iter().filter(move |(given, _)| Input::is_of(name, given)).map(|(_, outlook)| *outlook)
    }
}

/// What a stage will make and take. Nothing, if nothing is known.
#[derive(Debug, Clone, Default)]
pub struct Forecast {
    /// What it will make.
    pub outlook: Outlook,
    /// The memory that it will take.
    pub memory: Option<MemoryForecast>,
    /// Bytes that it will download.
    pub download: Option<u64>,
    /// Steps that it will train.
    pub steps: Option<usize>,
    /// The arithmetic of it.
    pub work: Option<Work>,
}

/// Multiplications and additions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Of all that there is to do.
    Whole(f64),
    /// Of a step whose records fill the context, where the records are not known yet.
    FullStep(f64),
}

/// Multiplications and additions a second in the products of this machine's processor: see [`imp_model::work::rate`].
pub fn rate() -> f64 {
    imp_model::work::rate()
}

impl Forecast {
    /// The same with nothing known of what it makes.
    pub(crate) fn without_outlook(self) -> Self {
        Self { outlook: Outlook::default(), ..self }
    }
}

/// Bytes of memory at the moment when they are the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryForecast {
    /// How many.
    pub bytes: u64,
    /// Whether the records are not known yet, and may be shorter than assumed.
    pub at_most: bool,
    /// What makes it less.
    pub remedy: &'static str,
}

/// Sizes of an artifact, whether it is there or still to be made.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// A language model.
    pub(crate) llm: Option<Tower<LanguageConfig>>,
    /// A vision encoder.
    pub(crate) vision: Option<Tower<SiglipConfig>>,
    /// What joins the two.
    pub(crate) joined: Option<ImpConfig>,
    /// Whether there is an adapter beside the language model.
    pub(crate) adapted: bool,
    /// Training records.
    pub(crate) records: Option<Records>,
}

/// A part of a model.
#[derive(Debug, Clone)]
pub(crate) struct Tower<C> {
    pub(crate) config: C,
    /// Of its weights' files.
    pub(crate) bytes: u64,
}

impl Tower<SiglipConfig> {
    /// The same for images of another size, if one is given: then the layers that are used are written in f32.
    pub(crate) fn resized(mut self, image_size: Option<usize>, select_layer: i64) -> Self {
        let Some(size) = image_size.filter(|size| *size != self.config.image_size) else { return self };
        self.config.image_size = size;
        let layers = self.config.num_hidden_layers.saturating_add_signed(select_layer as isize + 1);
        let used = SiglipConfig { num_hidden_layers: layers, ..self.config.clone() };
        self.bytes = 4 * used.parameters() as u64;
        self
    }
}

/// Training records.
#[derive(Debug, Clone)]
pub(crate) enum Records {
    /// They lie in this folder.
    There(PathBuf),
    /// They will be no longer than this, an image counting as one.
    Planned { max_length: usize },
}

impl Outlook {
    /// Of a language model alone.
    pub(crate) fn of_language_model(config: Option<LanguageConfig>, bytes: u64) -> Self {
        Self { llm: config.map(|config| Tower { config, bytes }), ..Self::default() }
    }
}
