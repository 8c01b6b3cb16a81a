//! The kind `eval`: lets a model answer a benchmark's questions and scores the answers like the benchmark's own scorer.
//! Independent of the benchmarks' formats and rules, each of which has a file of its own.

mod answers;
mod ask;
mod choice;
mod config;
mod custom;
mod figures;
mod files;
mod gqa;
mod judge;
mod log;
mod means;
mod mmbench;
mod mme;
mod mmvet;
mod ordered_json;
mod pope;
mod published;
mod question;
mod scienceqa;
mod spreadsheet;
mod study;
#[cfg(test)]
pub(crate) mod tests;
mod textvqa;
mod vizwiz;
mod vqa_text;
mod vqav2;

use std::path::Path;

pub use self::config::{BenchmarkName, EvalConfig, JudgeConfig};
use self::{
    files::Files,
    question::{Benchmark, Image, Mark, Question, Scores},
};
use crate::{
    Job, Stage, StageError,
    contract::{
        answers::ANSWERS as ANSWERS_FILE,
        figure::Figure,
        forecast::{Ahead, Forecast},
        input::Input,
        keys::{Key, Keys, with_table},
        paths::stays_inside,
        published::{PublishedTable, Shown},
        setting::Setting,
        stage::{ConfigIssue, Shards},
    },
    speaker::without_template,
    text::template::Template,
};

/// The kind `eval`.
#[derive(Debug)]
pub struct Eval;

impl BenchmarkName {
    /// Reads the benchmark's files.
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

/// The input with the model that answers the questions.
const MODEL: &str = "model";
/// The inputs with finished answers in `answers.jsonl`.
const ANSWERS: &str = "answers";

impl Stage for Eval {
    const KIND: &'static str = "eval";
    const VERSION: u32 = 18;
    const ABOUT: &'static str = "measures a model on a benchmark";
    const INPUTS: &'static [Input] = &[
        Input::optional(MODEL, "an Imp model: merged, quantized, or directly from a training stage"),
        Input::required_list("data", "the benchmark's questions and images, in one or more folders"),
        Input::list(ANSWERS, "finished answers in place of a model: those of shards, or of another program"),
    ];
    const FIGURES: &'static [Figure] = figures::FIGURES;
    const SETTINGS: &'static [Setting] = &[judge::ENDPOINT];
    const TABLES: &'static [&'static PublishedTable] = &[&published::TABLE];
    type Config = EvalConfig;

    fn keys() -> Vec<Key> {
        let mut keys = EvalConfig::keys(&serde_json::json!({"benchmark": "custom"}));
        // These defaults are the benchmark's.
        let by_benchmark = |key: &&mut Key| ["max_new_tokens", "prompt_suffix"].contains(&key.name.as_str());
        keys.iter_mut().filter(by_benchmark).for_each(|key| key.default = None);
        with_table(keys, "judge", JudgeConfig::keys(&serde_json::json!({"model": ""})))
    }

    fn check(config: &EvalConfig) -> Result<(), ConfigIssue> {
        if !(1..=4096).contains(&config.max_new_tokens()) {
            return Err(ConfigIssue::new("max_new_tokens", "must be between 1 and 4096"));
        }
        for (key, given, benchmarks) in config.benchmark_keys() {
            if given && !benchmarks.contains(&config.benchmark) {
                return Err(ConfigIssue::new(key, "is not a key of this benchmark"));
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
                "must be a conversation template; `plain` is for captions and has no question",
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
            (0, 0) => Err(ConfigIssue::new(
                MODEL,
                "is missing: name a stage that gives an Imp model, or give `answers` to score",
            )),
            (0, _) if config.shard.is_some() => {
                Err(ConfigIssue::new("shard", "has no effect with `answers`: remove it"))
            }
            (0, _) if !config.precision.is_default() => {
                Err(ConfigIssue::new("precision", "has no effect with `answers`, which are only scored: remove it"))
            }
            (0, _) | (_, 0) => Ok(()),
            _ => Err(ConfigIssue::new(MODEL, "can't be combined with `answers`: remove one of them")),
        }
    }

    fn uses_gpu(_config: &EvalConfig, count: &dyn Fn(&str) -> usize) -> bool {
        count(MODEL) > 0
    }

    fn uses_all_gpus() -> bool {
        true
    }

    fn shards(config: &EvalConfig) -> Option<Shards<EvalConfig>> {
        if config.shards < 2 || config.shard.is_some() {
            return None;
        }
        // Answers don't depend on the judge, so a different judge finds them in the cache.
        let part = |shard| EvalConfig { shard: Some(shard), judge: None, ..config.clone() };
        Some(Shards { configs: (0..config.shards).map(part).collect(), input: MODEL, outputs: ANSWERS })
    }

    fn shown_as(config: &EvalConfig) -> Option<Shown> {
        // Results on blank images are for other comparisons.
        (!config.ablate_image).then_some(Shown {
            table: &published::TABLE,
            column: config.benchmark.column(),
            model: MODEL,
            through: ANSWERS,
            partial: config.limit != 0,
        })
    }

    fn forecast(config: &EvalConfig, ahead: &Ahead<'_>) -> Forecast {
        let model = ahead.input(MODEL).filter(|_| config.template.is_none());
        Forecast { trouble: model.and_then(without_template), ..Forecast::default() }
    }

    fn run(config: &EvalConfig, job: &Job) -> Result<(), StageError> {
        let files = Files::new(config, job);
        let benchmark = config.benchmark.read(&files)?;
        let mut questions = benchmark.questions().to_vec();
        if let Some(name) = &config.prompts {
            let suffix = config.prompt_suffix.as_deref().unwrap_or_default();
            answers::reword(&mut questions, &files.named_by("prompts", name)?, suffix)?;
        }
        let given: Vec<&Path> = job.inputs(ANSWERS).collect();
        let answers = if given.is_empty() {
            let part = config.shard_range(questions.len());
            question::check(&questions[part.clone()], job)?;
            question::remark(&questions[part.clone()], job);
            let answers = ask::all(&questions[part.clone()], config, job)?;
            if config.shard.is_some() {
                write_answers(config, &*benchmark, part.start, &questions[part], &answers, job)?;
                return write_results(config, &Scores::default(), answers.len(), job);
            }
            answers
        } else {
            let texts =
                given.iter().map(|folder| files.read(&folder.join(ANSWERS_FILE))).collect::<Result<Vec<_>, _>>()?;
            answers::read(&texts, &questions)?
        };
        write_answers(config, &*benchmark, 0, &questions, &answers, job)?;
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

/// Writes the answers to the `questions` from number `first` on.
fn write_answers(
    config: &EvalConfig,
    benchmark: &dyn Benchmark,
    first: usize,
    questions: &[Question],
    answers: &[String],
    job: &Job,
) -> Result<(), StageError> {
    let mark = |(index, answer): (usize, &String)| benchmark.mark(first + index, answer);
    let marks: Vec<Mark> = answers.iter().enumerate().map(mark).collect();
    let image_of = |question: &Question| match &question.image {
        Some(Image::File(path)) if !config.ablate_image => job.in_input(path),
        _ => None,
    };
    answers::write(&job.output().join(ANSWERS_FILE), questions, answers, &marks, &image_of)
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
