//! The kind `eval`: a model answers a benchmark's questions, and the answers are scored as the benchmark's own scorer
//! does. Knows models and questions; each benchmark's files and rules are in a file of its own.

mod answers;
mod ask;
mod pope;
mod question;
#[cfg(test)]
mod tests;
mod vqa_text;
mod vqav2;

use serde::{Deserialize, Serialize};

use self::question::{Benchmark, Scores};
use crate::{
    Job, Stage, StageError,
    preprocess::{Template, stays_inside},
    stage::{ConfigIssue, Input},
};

/// The kind `eval`.
#[derive(Debug)]
pub struct Eval;

/// A benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BenchmarkName {
    /// Is this object in the image? (Li et al. 2023)
    Pope,
    /// Short answers to open questions (Goyal et al. 2017).
    Vqav2,
}

/// The keys of `eval`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// The benchmark.
    pub benchmark: BenchmarkName,
    /// Its questions, in the data folder: for `pope` the folder with `coco_pope_random.json`, `..._popular.json` and
    /// `..._adversarial.json` (`eval/pope`), for `vqav2` the question file (`eval/vqav2/questions.json`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<String>,
    /// `vqav2`: the annotation file (`eval/vqav2/annotations.json`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<String>,
    /// The folder of the images.
    #[serde(default = "image_folder")]
    pub image_folder: String,
    /// Shows a blank image in place of each: what the model guesses from the words alone.
    #[serde(default)]
    pub ablate_image: bool,
    /// The conversation template; left out, that of the model's family.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Template>,
    /// The longest answer, in tokens.
    #[serde(default = "max_new_tokens")]
    pub max_new_tokens: usize,
    /// Only so many questions (of each of POPE's three sets); 0 for all.
    #[serde(default)]
    pub limit: usize,
    /// What is added to each question.
    #[serde(default = "prompt_suffix")]
    pub prompt_suffix: String,
}

fn image_folder() -> String {
    "eval/images".into()
}

fn max_new_tokens() -> usize {
    32
}

fn prompt_suffix() -> String {
    crate::download::shapes::text::SHORT_ANSWER.into()
}

impl Stage for Eval {
    const KIND: &'static str = "eval";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "measures a model on a benchmark";
    const INPUTS: &'static [Input] = &[
        Input::required("model", "an Imp: merged, quantized, or as a training stage leaves it"),
        Input::required("data", "a folder with the benchmark's questions and images"),
    ];
    type Config = EvalConfig;

    fn check(config: &EvalConfig) -> Result<(), ConfigIssue> {
        if !(1..=4096).contains(&config.max_new_tokens) {
            return Err(ConfigIssue::new("max_new_tokens", "must be between 1 and 4096"));
        }
        if config.benchmark == BenchmarkName::Pope && config.annotations.is_some() {
            return Err(ConfigIssue::new("annotations", "is not used by `pope`, whose questions hold their answers"));
        }
        if config.template == Some(Template::Plain) {
            return Err(ConfigIssue::new(
                "template",
                "must be a conversation template: `plain` has no place for a question",
            ));
        }
        let paths = [
            ("questions", config.questions.as_deref()),
            ("annotations", config.annotations.as_deref()),
            ("image_folder", Some(config.image_folder.as_str())),
        ];
        for (key, path) in paths {
            if path.is_some_and(|path| !stays_inside(path)) {
                return Err(ConfigIssue::new(key, "must be a path inside the data folder, without `..`"));
            }
        }
        Ok(())
    }

    fn run(config: &EvalConfig, job: &Job) -> Result<(), StageError> {
        let benchmark: Box<dyn Benchmark> = match config.benchmark {
            BenchmarkName::Pope => Box::new(pope::Pope::read(config, job)?),
            BenchmarkName::Vqav2 => Box::new(vqav2::Vqav2::read(config, job)?),
        };
        question::check(benchmark.questions(), job)?;
        let answers = ask::all(benchmark.questions(), config, job)?;
        answers::write(&job.output().join("answers.jsonl"), benchmark.questions(), &config.prompt_suffix, &answers)?;
        let scores = benchmark.score(&answers);
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
