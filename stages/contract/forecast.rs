//! What is known about a stage before it runs: the size of its output, the memory and the work that it needs.
//! Plain data: independent of how a kind finds them out.

use std::{collections::BTreeMap, path::PathBuf};

use imp_model::config::{ImpConfig, LanguageConfig, VisionConfig};

use super::{device::Device, input::Input, job::Runtime};

/// What a stage knows when it is asked for a forecast.
#[derive(Debug)]
pub struct Ahead<'a> {
    /// Its runtime settings.
    pub runtime: &'a Runtime,
    /// Where it would compute.
    pub device: Device,
    /// Memory of the GPU that it would compute on, in bytes, if known.
    pub gpu_memory: Option<u64>,
    /// Its seed.
    pub seed: u64,
    /// The user's own files in the configuration: path as written -> absolute path.
    pub sources: &'a BTreeMap<String, PathBuf>,
    /// The outlook of its inputs.
    pub inputs: BTreeMap<&'a str, &'a Outlook>,
}

impl Ahead<'_> {
    /// The outlook of an input, if known.
    pub(crate) fn input(&self, name: &str) -> Option<&Outlook> {
        self.inputs.get(name).copied()
    }

    /// The outlooks of a list of inputs.
    pub(crate) fn inputs(&self, name: &str) -> impl Iterator<Item = &Outlook> {
        self.inputs.iter().filter(move |(given, _)| Input::is_of(name, given)).map(|(_, outlook)| *outlook)
    }
}

/// What a stage will produce and need. Unknown values are left out.
#[derive(Debug, Clone, Default)]
pub struct Forecast {
    /// Its output.
    pub outlook: Outlook,
    /// Its peak memory.
    pub memory: Option<MemoryForecast>,
    /// Bytes that it will download.
    pub download: Option<u64>,
    /// Why that is not known, of a stage that downloads.
    pub unknown: Option<String>,
    /// Why it would fail, or may do so, as far as that is known.
    pub trouble: Option<String>,
    /// Steps that it will train.
    pub steps: Option<usize>,
    /// Its arithmetic.
    pub work: Option<Work>,
}

/// Multiplications and additions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Of the whole stage.
    Whole(f64),
    /// Of one step whose records fill the context, if the records are not known yet.
    FullStep(f64),
}

/// Multiplications and additions per second in matrix products on this processor: see [`imp_model::work::rate`].
pub fn rate() -> f64 {
    imp_model::work::rate()
}

impl Forecast {
    /// The same forecast without the output.
    pub(crate) fn without_outlook(self) -> Self {
        Self { outlook: Outlook::default(), ..self }
    }
}

/// Peak memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryForecast {
    /// Of the host, in bytes.
    pub bytes: u64,
    /// Of the GPU, of each if there are several, in bytes, if it computes on one and that is known.
    pub gpu: Option<u64>,
    /// The GPUs on which it computes.
    pub gpus: usize,
    /// Whether this is an upper bound, because the records are not known yet.
    pub at_most: bool,
    /// How to reduce it.
    pub remedy: &'static str,
}

/// The sizes of an artifact, present or future.
#[derive(Debug, Clone, Default)]
pub struct Outlook {
    /// A language model.
    pub(crate) llm: Option<Tower<LanguageConfig>>,
    /// A vision encoder.
    pub(crate) vision: Option<Tower<VisionConfig>>,
    /// The configuration that joins the two.
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
    /// Size of the weights' files.
    pub(crate) bytes: u64,
}

impl Tower<VisionConfig> {
    /// The encoder for images of another size, if one is given.
    pub(crate) fn resized(mut self, image_size: Option<usize>, select_layer: i64) -> Self {
        let Some(size) = image_size.filter(|size| *size != self.config.image_size) else { return self };
        self.config.image_size = size;
        self.rewritten(select_layer)
    }

    /// The encoder as a stage writes it that has changed it: its layers in use, in f32.
    pub(crate) fn rewritten(mut self, select_layer: i64) -> Self {
        let layers = self.config.used_layers(select_layer).unwrap_or(self.config.num_hidden_layers);
        let used = VisionConfig { num_hidden_layers: layers, ..self.config.clone() };
        self.bytes = 4 * used.parameters() as u64;
        self
    }
}

/// Training records.
#[derive(Debug, Clone)]
pub(crate) enum Records {
    /// In this folder.
    There(PathBuf),
    /// Not there yet; at most this long, an image counting as one token, with conversations in this template.
    Planned { max_length: usize, template: &'static str },
}

impl Outlook {
    /// The outlook of a language model alone.
    pub(crate) fn of_language_model(config: Option<LanguageConfig>, bytes: u64) -> Self {
        Self { llm: config.map(|config| Tower { config, bytes }), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hidden states are counted from either end; what a folder from outside says may be none.
    #[test]
    fn a_rewritten_encoder_has_its_layers_in_use() {
        let config = VisionConfig::clip_vit_large_patch14_336();
        let layers = config.num_hidden_layers;
        let bytes = |select_layer: i64| Tower { config: config.clone(), bytes: 0 }.rewritten(select_layer).bytes;
        let with = |layers: usize| 4 * VisionConfig { num_hidden_layers: layers, ..config.clone() }.parameters() as u64;
        assert_eq!([bytes(-2), bytes(5), bytes(-1)], [with(layers - 1), with(5), with(layers)]);
        assert_eq!([bytes(i64::MAX), bytes(i64::MIN)], [with(layers); 2], "the stage says what is wrong");
    }
}
