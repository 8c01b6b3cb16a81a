//! The keys of `eval`, and what LLaVA's scripts choose for each benchmark.
//! Independent of files and models.

use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text::{conversation::SHORT_ANSWER, template::Template};

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchmarkName {
    /// Questions of one's own.
    Custom,
    /// Questions made from scene graphs (Hudson and Manning 2019).
    Gqa,
    /// Multiple choice, options rotated (Liu et al. 2023).
    Mmbench,
    /// Two yes-or-no questions about each image (Fu et al. 2023).
    Mme,
    /// Open questions, judged by a language model (Yu et al. 2023).
    Mmvet,
    /// Is this object in the image? (Li et al. 2023)
    Pope,
    /// Multiple choice, from school books (Lu et al. 2022).
    Scienceqa,
    /// Questions about written words (Singh et al. 2019).
    Textvqa,
    /// Questions of blind people (Gurari et al. 2018).
    Vizwiz,
    /// Short answers to open questions (Goyal et al. 2017).
    Vqav2,
}

/// What LLaVA adds to the questions of `VizWiz`.
const UNANSWERABLE: &str = "\nWhen the provided information is insufficient, respond with 'Unanswerable'.";
/// What LLaVA adds to multiple-choice questions.
const OPTION_LETTER: &str = "\nAnswer with the option's letter from the given choices directly.";

impl BenchmarkName {
    /// What LLaVA and Imp add to each question.
    fn prompt_suffix(self) -> String {
        match self {
            Self::Custom | Self::Mmvet => String::new(),
            Self::Mmbench | Self::Scienceqa => OPTION_LETTER.into(),
            Self::Vizwiz => format!("{UNANSWERABLE}{SHORT_ANSWER}"),
            Self::Gqa | Self::Mme | Self::Pope | Self::Textvqa | Self::Vqav2 => SHORT_ANSWER.into(),
        }
    }

    /// The longest answer that LLaVA's scripts let a model give.
    fn max_new_tokens(self) -> usize {
        match self {
            Self::Custom | Self::Mmbench | Self::Mmvet | Self::Scienceqa => 1024,
            Self::Gqa | Self::Mme | Self::Pope | Self::Textvqa | Self::Vizwiz | Self::Vqav2 => 128,
        }
    }
}

/// The keys of `eval`. Files are looked for in all data folders; those that are not named are found under the names that
/// their owners gave them.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct EvalConfig {
    /// The benchmark.
    pub benchmark: BenchmarkName,
    /// Its question file; for `pope` and `mme` the folder of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<String>,
    /// `vqav2`: the annotation file. `scienceqa`: the file of splits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<String>,
    /// A question file of LLaVA's (from its `eval.zip`), to ask in its words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<String>,
    /// `textvqa`: the file with what an OCR system has read in the images, to be told to the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocr: Option<String>,
    /// `scienceqa`: which of its splits; `test` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// The folder of the images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_folder: Option<String>,
    /// Shows a blank image in place of each: what the model guesses from the words alone.
    #[serde(default)]
    pub ablate_image: bool,
    /// The conversation template; left out, that of the model's family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// The longest answer, in tokens; left out, as long as LLaVA's scripts let it be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Only so many questions (of each of POPE's three sets, images of each of MME's tasks); 0 for all.
    #[serde(default)]
    pub limit: usize,
    /// `mmvet`: who judges the answers; left out, they are not judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<JudgeConfig>,
    /// How many parts the questions are cut into. Each is a stage of its own, `NAME-1of4` and so on, so that they run side by
    /// side, and this stage scores their answers.
    #[serde(default = "one")]
    pub shards: usize,
    /// Answers only this part, counted from 0, and leaves the score to a stage that has all parts as `answers`. Not needed
    /// where `shards` stands alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<usize>,
    /// What is added to each question; left out, what LLaVA's question files add.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_suffix: Option<String>,
}

/// Some defaults are the benchmark's: they are filled in where a configuration is read, so that they are part of the key.
impl<'de> Deserialize<'de> for EvalConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The function that `remote = "Self"` has derived.
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

/// A model that judges, at the endpoint that the machine's `imp-flow.toml` names.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JudgeConfig {
    /// Its name there. The official one is `gpt-4-0613`.
    pub model: String,
    /// How often each answer is judged; the score is the mean.
    #[serde(default = "five")]
    pub runs: usize,
    /// The official evaluator in the data folders, which has the rubric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluator: Option<String>,
}

fn five() -> usize {
    5
}

fn one() -> usize {
    1
}

impl EvalConfig {
    /// What the model is asked.
    pub(super) fn prompt(&self, question: &str) -> String {
        format!("{question}{}", self.prompt_suffix.as_deref().unwrap_or_default())
    }

    /// How many of `count` questions are asked.
    pub(super) fn limited(&self, count: usize) -> usize {
        if self.limit == 0 { count } else { count.min(self.limit) }
    }

    pub(super) fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or_default()
    }

    /// The questions of this shard, cut as LLaVA's scripts cut them.
    pub(super) fn part(&self, questions: usize) -> Range<usize> {
        let Some(shard) = self.shard else { return 0..questions };
        let length = questions.div_ceil(self.shards);
        (shard * length).min(questions)..((shard + 1) * length).min(questions)
    }

    pub(super) fn split(&self) -> &str {
        self.split.as_deref().unwrap_or("test")
    }

    /// Keys of some benchmarks only: the key, whether it is given, and the benchmarks that have it.
    pub(super) fn keys_of_some(&self) -> [(&'static str, bool, &'static [BenchmarkName]); 4] {
        use BenchmarkName::{Mmvet, Scienceqa, Textvqa, Vqav2};
        [
            ("annotations", self.annotations.is_some(), &[Vqav2, Scienceqa]),
            ("judge", self.judge.is_some(), &[Mmvet]),
            ("ocr", self.ocr.is_some(), &[Textvqa]),
            ("split", self.split.is_some(), &[Scienceqa]),
        ]
    }
}
