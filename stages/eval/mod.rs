//! The kind `eval`: a model answers a benchmark's questions, and the answers are scored as the benchmark's own scorer
//! does. Knows models and questions; each benchmark's files and rules are in a file of its own.

mod answers;
mod ask;
mod choice;
mod custom;
mod files;
mod gqa;
mod judge;
mod log;
mod map;
mod mmbench;
mod mme;
mod mmvet;
mod parts;
mod pope;
mod question;
mod scienceqa;
mod spreadsheet;
#[cfg(test)]
mod tests;
mod textvqa;
mod vizwiz;
mod vqa_text;
mod vqav2;

use std::{ops::Range, path::Path};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use self::{
    files::Files,
    question::{Benchmark, Scores},
};
use crate::{
    Job, Stage, StageError,
    download::shapes::text::SHORT_ANSWER,
    preprocess::{Template, stays_inside},
    stage::{ConfigIssue, Input, Parts},
};

/// The kind `eval`.
#[derive(Debug)]
pub struct Eval;

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

    /// Reads its files.
    fn read(self, files: &Files<'_>) -> Result<Box<dyn Benchmark>, StageError> {
        Ok(match self {
            Self::Custom => Box::new(custom::Custom::read(files)?),
            Self::Gqa => Box::new(gqa::Gqa::read(files)?),
            Self::Mmbench => Box::new(mmbench::MmBench::read(files)?),
            Self::Mme => Box::new(mme::Mme::read(files)?),
            Self::Mmvet => Box::new(mmvet::MmVet::read(files)?),
            Self::Pope => Box::new(pope::Pope::read(files)?),
            Self::Scienceqa => Box::new(scienceqa::ScienceQa::read(files)?),
            Self::Textvqa => Box::new(textvqa::TextVqa::read(files)?),
            Self::Vizwiz => Box::new(vizwiz::VizWiz::read(files)?),
            Self::Vqav2 => Box::new(vqav2::Vqav2::read(files)?),
        })
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
    fn prompt(&self, question: &str) -> String {
        format!("{question}{}", self.prompt_suffix.as_deref().unwrap_or_default())
    }

    /// How many of `count` questions are asked.
    fn limited(&self, count: usize) -> usize {
        if self.limit == 0 { count } else { count.min(self.limit) }
    }

    fn max_new_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or_default()
    }

    /// The questions of this shard, cut as LLaVA's scripts cut them.
    fn part(&self, questions: usize) -> Range<usize> {
        let Some(shard) = self.shard else { return 0..questions };
        let length = questions.div_ceil(self.shards);
        (shard * length).min(questions)..((shard + 1) * length).min(questions)
    }

    fn split(&self) -> &str {
        self.split.as_deref().unwrap_or("test")
    }

    /// Keys of some benchmarks only: the key, whether it is given, and the benchmarks that have it.
    fn keys_of_some(&self) -> [(&'static str, bool, &'static [BenchmarkName]); 4] {
        use BenchmarkName::{Mmvet, Scienceqa, Textvqa, Vqav2};
        [
            ("annotations", self.annotations.is_some(), &[Vqav2, Scienceqa]),
            ("judge", self.judge.is_some(), &[Mmvet]),
            ("ocr", self.ocr.is_some(), &[Textvqa]),
            ("split", self.split.is_some(), &[Scienceqa]),
        ]
    }
}

/// The input that answers the questions.
const MODEL: &str = "model";
/// The inputs that have answers in `answers.jsonl`.
const ANSWERS: &str = "answers";

impl Stage for Eval {
    const KIND: &'static str = "eval";
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "measures a model on a benchmark";
    const INPUTS: &'static [Input] = &[
        Input::optional(MODEL, "an Imp: merged, quantized, or as a training stage leaves it"),
        Input::required_list("data", "the benchmark's questions and images, in one or more folders"),
        Input::list(
            ANSWERS,
            "answers that are there already, in place of a model: those of shards, or another program's",
        ),
    ];
    type Config = EvalConfig;

    fn check(config: &EvalConfig) -> Result<(), ConfigIssue> {
        if !(1..=4096).contains(&config.max_new_tokens()) {
            return Err(ConfigIssue::new("max_new_tokens", "must be between 1 and 4096"));
        }
        for (key, given, benchmarks) in config.keys_of_some() {
            if given && !benchmarks.contains(&config.benchmark) {
                return Err(ConfigIssue::new(key, "is no key of this benchmark"));
            }
        }
        if config.judge.as_ref().is_some_and(|judge| !(1..=100).contains(&judge.runs)) {
            return Err(ConfigIssue::new("judge.runs", "must be between 1 and 100"));
        }
        if config.shards == 0 || config.shard.is_some_and(|shard| shard >= config.shards) {
            return Err(ConfigIssue::new("shard", "must be less than `shards`, and `shards` at least 1"));
        }
        if config.template == Some(Template::Plain) {
            return Err(ConfigIssue::new(
                "template",
                "must be a conversation template: `plain` has no place for a question",
            ));
        }
        let evaluator = config.judge.as_ref().map_or(&None, |judge| &judge.evaluator);
        let paths = [
            ("questions", &config.questions),
            ("annotations", &config.annotations),
            ("prompts", &config.prompts),
            ("judge.evaluator", evaluator),
            ("ocr", &config.ocr),
            ("split", &config.split),
            ("image_folder", &config.image_folder),
        ];
        for (key, path) in paths {
            if path.as_ref().is_some_and(|path| !stays_inside(path)) {
                return Err(ConfigIssue::new(key, "must be a path inside the data folder, without `..`"));
            }
        }
        Ok(())
    }

    fn check_inputs(config: &EvalConfig, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        match (count(MODEL), count(ANSWERS)) {
            (0, 0) => Err(ConfigIssue::new(MODEL, "is missing: name a stage that gives an Imp, or `answers` to score")),
            (0, _) if config.shard.is_some() => Err(ConfigIssue::new("shard", "is of no use with `answers`")),
            (0, _) | (_, 0) => Ok(()),
            _ => Err(ConfigIssue::new(MODEL, "can't stand beside `answers`: leave one of them out")),
        }
    }

    fn parts(config: &EvalConfig) -> Option<Parts<EvalConfig>> {
        if config.shards < 2 || config.shard.is_some() {
            return None;
        }
        // Another judge needs no other answers.
        let part = |shard| EvalConfig { shard: Some(shard), judge: None, ..config.clone() };
        Some(Parts { configs: (0..config.shards).map(part).collect(), input: MODEL, outputs: ANSWERS })
    }

    fn run(config: &EvalConfig, job: &Job) -> Result<(), StageError> {
        let files = Files::new(config, job);
        let benchmark = config.benchmark.read(&files)?;
        let mut questions = benchmark.questions().to_vec();
        if let Some(name) = &config.prompts {
            answers::reword(&mut questions, &files.named_by("prompts", name)?)?;
        }
        let given: Vec<&Path> = job.inputs(ANSWERS).collect();
        let answers = if given.is_empty() {
            let part = config.part(questions.len());
            question::check(&questions[part.clone()], job)?;
            let answers = ask::all(&questions[part.clone()], config, job)?;
            if config.shard.is_some() {
                answers::write(&job.output().join("answers.jsonl"), &questions[part], &answers)?;
                return write_results(config, &Scores::default(), answers.len(), job);
            }
            answers
        } else {
            let texts =
                given.iter().map(|folder| files.read(&folder.join("answers.jsonl"))).collect::<Result<Vec<_>, _>>()?;
            answers::read(&texts, &questions)?
        };
        answers::write(&job.output().join("answers.jsonl"), &questions, &answers)?;
        for (name, bytes) in benchmark.uploads(&answers)? {
            let path = job.output().join(name);
            std::fs::write(&path, bytes).map_err(StageError::io(&path))?;
        }
        let scores = benchmark.score(&answers, job)?;
        for (name, value) in &scores.figures {
            job.result(name, *value);
        }
        write_results(config, &scores, answers.len(), job)
    }
}

fn write_results(config: &EvalConfig, scores: &Scores, questions: usize, job: &Job) -> Result<(), StageError> {
    let figures: serde_json::Map<String, serde_json::Value> =
        scores.figures.iter().map(|(name, value)| (name.clone(), (*value).into())).collect();
    let results = serde_json::json!({
        "benchmark": config.benchmark, "ablate_image": config.ablate_image, "questions": questions,
        "figures": figures, "detail": scores.detail,
    });
    let path = job.output().join("results.json");
    let text = serde_json::to_string_pretty(&results).unwrap_or_default() + "\n";
    std::fs::write(&path, text).map_err(StageError::io(&path))
}
