//! `MM-Vet` (Yu et al. 2023, arXiv 2308.02490): open questions whose answers a language model judges by the few-shot rubric
//! of the official evaluator. Without a judge, writes a file of answers for that evaluator and no score. Independent of
//! other benchmarks.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    EvalConfig,
    files::{Files, Images, Text},
    judge::{Judge, Reply},
    log::Log,
    ordered_json::InOrder,
    question::{Benchmark, Id, Mark, Question, Scores},
};
use crate::{Job, StageError, contract::event::Progress};

/// Attempts to get a score from a judge's replies.
const TRIES: u32 = 5;
/// Ends the second and further requests.
const RETRY_SUFFIX: &str = "\nPredict the correctness of the answer (digit): ";
/// Verdicts that are requested at a time, and then logged.
const CHUNK: usize = 8;

/// An entry of the question file.
#[derive(Debug, Deserialize)]
struct Asked {
    imagename: String,
    question: String,
    answer: String,
    capability: Vec<String>,
}

/// The questions, and their entries under the names of the official files.
pub(super) struct MmVet {
    questions: Vec<Question>,
    asked: Vec<(String, Asked)>,
    jury: Option<Jury>,
}

/// The judge, its rubric, and the number of runs.
struct Jury {
    judge: Judge,
    rubric: String,
    runs: usize,
}

/// A judge's score of an answer, and a line of the log.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Verdict {
    question: usize,
    run: usize,
    score: f64,
    content: String,
    model: String,
}

impl MmVet {
    pub(super) fn read(files: &Files<'_>) -> Result<Self, StageError> {
        let text = files.questions(&["mm-vet/mm-vet.json", "mm-vet.json"])?;
        let mut all = Self::parse(&text, &files.images(&["mm-vet/images", "images"]), files.config)?;
        if let Some(judge) = &files.config.judge {
            let evaluator = files.evaluator()?;
            let rubric = rubric(&evaluator)?;
            all.jury = Some(Jury { judge: Judge::of_this_machine(&judge.model)?, rubric, runs: judge.runs });
        }
        Ok(all)
    }

    fn parse(text: &Text, images: &Images, config: &EvalConfig) -> Result<Self, StageError> {
        let InOrder(mut asked) = text.json::<InOrder<Asked>>()?;
        if asked.is_empty() {
            return Err(text.error("there are no questions"));
        }
        asked.truncate(config.limited(asked.len()));
        let question = |(name, asked): &(String, Asked)| {
            // LLaVA's files call `v1_17` 17.
            let number = name.strip_prefix("v1_").and_then(|number| number.parse().ok());
            let id = number.map_or_else(|| name.as_str().into(), Id::Number);
            let question = Question::new(id, images.find(&[&asked.imagename]), config.prompt(&asked.question));
            Question { category: capabilities(asked), ..question }
        };
        Ok(Self { questions: asked.iter().map(question).collect(), asked, jury: None })
    }

    /// The verdicts on all answers in all runs. They are logged, so that none is requested twice.
    fn verdicts(&self, jury: &Jury, answers: &[String], job: &Job) -> Result<Vec<Verdict>, StageError> {
        let (mut log, mut verdicts) = Log::open::<Verdict>(&job.checkpoint(), "verdicts.jsonl")?;
        let all = (0..jury.runs).flat_map(|run| (0..self.asked.len()).map(move |question| (run, question)));
        let open: Vec<(usize, usize)> = all
            .filter(|(run, question)| !verdicts.iter().any(|known| (known.run, known.question) == (*run, *question)))
            .collect();
        let total = jury.runs * self.asked.len();
        job.progress(Progress::new(verdicts.len(), total, "verdicts"));
        for chunk in open.chunks(CHUNK) {
            job.check_cancelled()?;
            let verdict = |(run, question): &(usize, usize)| {
                let (score, reply) = jury.verdict(&self.asked[*question].1, &answers[*question], job)?;
                Ok(Verdict { question: *question, run: *run, score, content: reply.content, model: reply.model })
            };
            let new = chunk.par_iter().map(verdict).collect::<Result<Vec<_>, StageError>>()?;
            log.add(&new)?;
            verdicts.extend(new);
            job.progress(Progress::new(verdicts.len(), total, "verdicts"));
        }
        verdicts.sort_by_key(|verdict| (verdict.run, verdict.question));
        Ok(verdicts)
    }

    /// The official evaluator's figures: the mean over questions, then over runs, in percent with one decimal.
    fn figures(&self, verdicts: &[Verdict], runs: usize) -> Scores {
        let means = |part: &dyn Fn(&Asked) -> bool| -> Vec<f64> {
            let count = self.asked.iter().filter(|(_, asked)| part(asked)).count();
            let of_run = |run: usize| {
                let scores = verdicts.iter().filter(|v| v.run == run && part(&self.asked[v.question].1));
                scores.map(|verdict| verdict.score).sum::<f64>() / count as f64 * 100.0
            };
            (0..runs).map(of_run).collect()
        };
        let totals = means(&|_| true);
        let spread = (totals.iter().map(|total| (total - mean(&totals)).powi(2)).sum::<f64>() / runs as f64).sqrt();
        let mut figures = vec![("total".to_string(), one_decimal(mean(&totals)))];
        let mut together = BTreeMap::new();
        for asked in self.asked.iter().map(|(_, asked)| asked) {
            for capability in &asked.capability {
                if !figures.iter().any(|(name, _)| name == capability) {
                    let figure = one_decimal(mean(&means(&|asked| asked.capability.contains(capability))));
                    figures.push((capability.clone(), figure));
                }
            }
            together
                .entry(capabilities(asked))
                .or_insert_with_key(|name| one_decimal(mean(&means(&|other| capabilities(other) == *name))));
        }
        let runs: Vec<f64> = totals.iter().copied().map(one_decimal).collect();
        let detail = json!({"total": figures[0].1, "std": one_decimal(spread), "runs": runs, "integrations": together});
        Scores { figures, detail }
    }
}

/// Rounds like `NumPy`.
fn one_decimal(value: f64) -> f64 {
    (value * 10.0).round_ties_even() / 10.0
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// A question's capabilities as one name.
fn capabilities(asked: &Asked) -> String {
    let mut names: Vec<&str> = asked.capability.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.join("_")
}

/// The few-shot prompt in the official evaluator, which is a notebook or a script: the text in triple quotes after
/// `prompt =`.
fn rubric(evaluator: &Text) -> Result<String, StageError> {
    #[derive(Deserialize)]
    struct Notebook {
        cells: Vec<Cell>,
    }
    #[derive(Deserialize)]
    struct Cell {
        source: Vec<String>,
    }
    let code = match evaluator.json::<Notebook>() {
        Ok(notebook) => notebook.cells.iter().map(|cell| cell.source.concat()).collect::<Vec<_>>().join("\n"),
        Err(_) => evaluator.text.clone(),
    };
    let quoted = code.split_once("prompt = \"\"\"").and_then(|(_, rest)| rest.split_once("\"\"\""));
    let (rubric, _) = quoted.ok_or_else(|| evaluator.error("there is no `prompt = \"\"\"...\"\"\"` in it"))?;
    Ok(rubric.into())
}

impl Jury {
    /// The score of an answer, from 0 to 1, and the reply that gave it. If a reply is not such a number, the judge is asked
    /// again at rising temperatures; if none is, the score is 0.
    fn verdict(&self, asked: &Asked, answer: &str, job: &Job) -> Result<(f64, Reply), StageError> {
        let truth = asked.answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ");
        let mut text = format!("{}\n{} | {truth} | {answer} | ", self.rubric, asked.question);
        let mut reply = self.judge.ask(&text, 0.0, job)?;
        text += RETRY_SUFFIX;
        for number in 1..TRIES {
            if let Some(score) = score(&reply.content) {
                return Ok((score, reply));
            }
            reply = self.judge.ask(&text, f64::from(number - 1) * 0.5, job)?;
        }
        Ok((score(&reply.content).unwrap_or(0.0), reply))
    }
}

/// The score in a reply: its first word, if that is a number from 0 to 1.
fn score(content: &str) -> Option<f64> {
    content.split(' ').next()?.trim().parse().ok().filter(|score| (0.0..=1.0).contains(score))
}

impl Benchmark for MmVet {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    // What a judge says of it is in `results.json`.
    fn mark(&self, question: usize, _answer: &str) -> Mark {
        let truth = self.asked[question].1.answer.clone();
        Mark { truth: vec![truth], score: None }
    }

    fn score(&self, answers: &[String], job: &Job) -> Result<Scores, StageError> {
        let Some(jury) = &self.jury else { return Ok(Scores::default()) };
        let verdicts = self.verdicts(jury, answers, job)?;
        let mut scores = self.figures(&verdicts, jury.runs);
        let name = |verdict: &Verdict| self.asked[verdict.question].0.clone();
        let lines = verdicts.iter().map(
            |v| json!({"question": name(v), "run": v.run, "score": v.score, "content": v.content, "model": v.model}),
        );
        scores.detail["verdicts"] = lines.collect();
        Ok(scores)
    }

    fn uploads(&self, answers: &[String]) -> Result<Vec<(&'static str, Vec<u8>)>, StageError> {
        let all: Map<String, Value> = self
            .asked
            .iter()
            .map(|(name, _)| name.clone())
            .zip(answers.iter().map(|answer| answer.clone().into()))
            .collect();
        let text = serde_json::to_vec_pretty(&all).unwrap_or_default();
        Ok(vec![("upload.json", text)])
    }
}

#[cfg(test)]
mod tests;
