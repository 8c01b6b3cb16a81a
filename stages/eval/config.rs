//! The keys of `eval`, and their defaults for each benchmark, which are those of LLaVA's scripts.
//! Independent of files and models.

use std::ops::Range;

use imp_model::Precision;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    contract::keys::keys,
    text::{conversation::SHORT_ANSWER, template::Template},
};

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchmarkName {
    /// The user's own questions.
    Custom,
    /// Questions made from scene graphs (Hudson and Manning 2019).
    Gqa,
    /// Multiple choice with rotated options (Liu et al. 2023).
    Mmbench,
    /// Two yes-or-no questions per image (Fu et al. 2023).
    Mme,
    /// Open questions, judged by a language model (Yu et al. 2023).
    Mmvet,
    /// Whether an object is in the image (Li et al. 2023).
    Pope,
    /// Multiple choice, from school lessons (Lu et al. 2022).
    Scienceqa,
    /// Questions about text in the image (Singh et al. 2019).
    Textvqa,
    /// Questions asked by blind people (Gurari et al. 2018).
    Vizwiz,
    /// Open questions with short answers (Goyal et al. 2017).
    Vqav2,
}

/// LLaVA's addition to the questions of `VizWiz`.
const UNANSWERABLE: &str = "\nWhen the provided information is insufficient, respond with 'Unanswerable'.";
/// LLaVA's addition to multiple-choice questions.
const OPTION_LETTER: &str = "\nAnswer with the option's letter from the given choices directly.";

impl BenchmarkName {
    /// The text that LLaVA and Imp append to each question.
    fn prompt_suffix(self) -> String {
        match self {
            Self::Custom | Self::Mmvet => String::new(),
            Self::Mmbench | Self::Scienceqa => OPTION_LETTER.into(),
            Self::Vizwiz => format!("{UNANSWERABLE}{SHORT_ANSWER}"),
            Self::Gqa | Self::Mme | Self::Pope | Self::Textvqa | Self::Vqav2 => SHORT_ANSWER.into(),
        }
    }

    /// The longest answer, in tokens, that LLaVA's scripts allow.
    fn max_new_tokens(self) -> usize {
        match self {
            Self::Custom | Self::Mmbench | Self::Mmvet | Self::Scienceqa => 1024,
            Self::Gqa | Self::Mme | Self::Pope | Self::Textvqa | Self::Vizwiz | Self::Vqav2 => 128,
        }
    }
}

keys! {
    /// The keys of `eval`. Files are searched for in all data folders; their default names are those of the benchmark's
    /// publishers.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(remote = "Self", deny_unknown_fields)]
    pub struct EvalConfig {
        /// The benchmark.
        pub benchmark: BenchmarkName,
        /// The question file; for `pope` and `mme`, the folder of question files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub questions: Option<String>,
        /// `vqav2`: the annotation file. `scienceqa`: the file of splits.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub annotations: Option<String>,
        /// A question file of LLaVA's (from its `eval.zip`), whose prompts replace those of the question file.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prompts: Option<String>,
        /// `textvqa`: a file with the text that an OCR system found in the images, to be added to the prompts.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub ocr: Option<String>,
        /// `scienceqa`: the split (default: `test`).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub split: Option<String>,
        /// The folder of the images.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub image_folder: Option<String>,
        /// Replaces each image by a blank one, to measure what the model guesses from the text alone.
        #[serde(default)]
        pub ablate_image: bool,
        /// The conversation template (default: that of the model's family).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub template: Option<Template>,
        /// The longest answer in tokens (default: as in LLaVA's scripts).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub max_new_tokens: Option<usize>,
        /// Number of questions to ask (for POPE, in each of its three sets; for MME, the number of images in each task); 0 for
        /// all.
        #[serde(default)]
        pub limit: usize,
        /// `mmvet`: the judge of the answers (default: no judge, and no score).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub judge: Option<JudgeConfig>,
        /// Number of shards that the questions are split into. Each becomes a stage of its own, `NAME-1of4` and so on, so that
        /// shards can run in parallel; this stage then scores their answers.
        #[serde(default = "one")]
        pub shards: usize,
        /// Answers only this shard, counted from 0, and leaves the score to a stage that has all shards as `answers`. Not needed
        /// with `shards`, which sets it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub shard: Option<usize>,
        /// Text that is appended to each question (default: as in LLaVA's question files).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub prompt_suffix: Option<String>,
        /// Of matrix products: `f32` (the default), or `bf16`, which rounds their operands to bf16 (to nearest even). Sums and
        /// everything else are in f32.
        #[serde(default, skip_serializing_if = "Precision::is_default")]
        pub precision: Precision,
    }
}

/// Some defaults depend on the benchmark. They are filled in during deserialisation, so that they are part of the key.
impl<'de> Deserialize<'de> for EvalConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The inherent function that `remote = "Self"` derives.
        let mut config = Self::deserialize(deserializer)?;
        let benchmark = config.benchmark;
        config.max_new_tokens.get_or_insert_with(|| benchmark.max_new_tokens());
        config.prompt_suffix.get_or_insert_with(|| benchmark.prompt_suffix());
        Ok(config)
    }
}

impl Serialize for EvalConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Self::serialize(self, serializer)
    }
}

keys! {
    /// A model that judges answers, at the endpoint in the machine's `imp-flow.toml`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct JudgeConfig {
        /// The model's name at the endpoint. The official judge is `gpt-4-0613`.
        pub model: String,
        /// Number of times that each answer is judged; the score is the mean.
        #[serde(default = "five")]
        pub runs: usize,
        /// The official evaluator in the data folders, which contains the rubric.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub evaluator: Option<String>,
    }
}

fn five() -> usize {
    5
}

fn one() -> usize {
    1
}

impl EvalConfig {
    /// The text of a question for the model.
    pub(super) fn prompt(&self, question: &str) -> String {
        format!("{question}{}", self.prompt_suffix.as_deref().unwrap_or_default())
    }

    /// The number of questions to ask, of `count`.
    pub(super) fn limited(&self, count: usize) -> usize {
        if self.limit == 0 { count } else { count.min(self.limit) }
    }

    pub(super) fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or_default()
    }

    /// The range of this shard's questions, split like LLaVA's scripts do.
    pub(super) fn shard_range(&self, questions: usize) -> Range<usize> {
        let Some(shard) = self.shard else { return 0..questions };
        let length = questions.div_ceil(self.shards);
        (shard * length).min(questions)..((shard + 1) * length).min(questions)
    }

    pub(super) fn split(&self) -> &str {
        self.split.as_deref().unwrap_or("test")
    }

    /// The keys that only some benchmarks have: the key, whether it is set, and those benchmarks.
    pub(super) fn benchmark_keys(&self) -> [(&'static str, bool, &'static [BenchmarkName]); 4] {
        use BenchmarkName::{Mmvet, Scienceqa, Textvqa, Vqav2};
        [
            ("annotations", self.annotations.is_some(), &[Vqav2, Scienceqa]),
            ("judge", self.judge.is_some(), &[Mmvet]),
            ("ocr", self.ocr.is_some(), &[Textvqa]),
            ("split", self.split.is_some(), &[Scienceqa]),
        ]
    }
}
