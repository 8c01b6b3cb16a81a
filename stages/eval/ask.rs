//! Asks a model all questions: groups of equal prompts, batches, and a log to resume from after an interruption.
//! Independent of benchmarks and scores.

use std::{borrow::Cow, collections::HashMap};

use imp_model::{
    NotANumber, Sample,
    tensor::{self, Graph, Mat},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    config::EvalConfig,
    log::Log,
    question::{Id, Image, Question},
};
use crate::{
    Job, StageError, contract::event::Progress, model_folder::remark, place::place, speaker::Speaker,
    text::template::Template,
};

/// Questions per batch, unless the pipeline says otherwise.
const BATCH: usize = 32;

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Answer<'a> {
    /// The question's index.
    number: usize,
    text: Cow<'a, str>,
}

/// What the model sees beside the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Shown<'a> {
    Nothing,
    Blank,
    Image(&'a Image),
}

/// Questions that have one answer, as prompt and image are the same. POPE asks for each present object three times; on
/// blank images even more are alike.
struct Group<'a> {
    /// Of the first.
    id: &'a Id,
    shown: Shown<'a>,
    prompt: String,
    questions: Vec<usize>,
}

/// The answers to all questions, in their order.
pub(super) fn all(questions: &[Question], config: &EvalConfig, job: &Job) -> Result<Vec<String>, StageError> {
    let (mut log, known) = Log::open::<Answer<'_>>(&job.checkpoint(), "answers.jsonl")?;
    let mut answers: Vec<Option<String>> = vec![None; questions.len()];
    for Answer { number, text } in known {
        if let Some(answer) = answers.get_mut(number) {
            *answer = Some(text.into_owned());
        }
    }
    let done = |answers: &[Option<String>]| answers.iter().flatten().count();
    let progress = |done: usize| job.progress(Progress::new(done, questions.len(), "questions"));
    progress(done(&answers));
    if answers.iter().any(Option::is_none) {
        let mut answerer = Answerer::load(config, job)?;
        let groups = groups(questions, config, answerer.speaker.template());
        let open: Vec<&Group<'_>> =
            groups.iter().filter(|group| group.questions.iter().any(|question| answers[*question].is_none())).collect();
        let batch = if job.runtime().micro_batch_size == 0 { BATCH } else { job.runtime().micro_batch_size };
        for batch in open.chunks(batch) {
            job.check_cancelled()?;
            let texts = answerer.answer(batch)?;
            for (group, text) in batch.iter().zip(texts) {
                log.add(group.questions.iter().map(|number| Answer { number: *number, text: text.as_str().into() }))?;
                for question in &group.questions {
                    answers[*question] = Some(text.clone());
                }
            }
            progress(done(&answers));
        }
    }
    Ok(answers.into_iter().map(Option::unwrap_or_default).collect())
}

/// Groups questions that have the same answer. Groups with the same image follow each other, so that it is encoded once.
fn groups<'a>(questions: &'a [Question], config: &EvalConfig, template: Template) -> Vec<Group<'a>> {
    let mut numbers: HashMap<(Shown<'_>, String), usize> = HashMap::new();
    let mut groups: Vec<Group<'_>> = Vec::new();
    for (number, question) in questions.iter().enumerate() {
        let (shown, prompt) = match &question.image {
            None => (Shown::Nothing, template.prompt_without_image(&question.prompt)),
            Some(_) if config.ablate_image => (Shown::Blank, template.prompt(&question.prompt)),
            Some(image) => (Shown::Image(image), template.prompt(&question.prompt)),
        };
        let group = *numbers.entry((shown, prompt.clone())).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.questions.push(number),
            None => groups.push(Group { id: &question.id, shown, prompt, questions: vec![number] }),
        }
    }
    groups.sort_by_key(|group| group.shown);
    groups
}

/// A model at work on a batch after the other.
struct Answerer<'a> {
    job: &'a Job,
    speaker: Speaker,
    max_new_tokens: usize,
    /// The features of the images of the last batch: the next one often begins with the same image.
    features: HashMap<Shown<'a>, Mat>,
}

impl<'a> Answerer<'a> {
    fn load(config: &EvalConfig, job: &'a Job) -> Result<Self, StageError> {
        let place = place(job, config.precision)?;
        let opened = Speaker::open(job.input("model")?, config.template, &place);
        let speaker = opened.map_err(|error| job.renamed(error))?;
        remark(job, job.input("model")?);
        if let Some(trained) = speaker.trained_otherwise() {
            job.caution(format!(
                "the model was trained in the template `{}` and is asked in `{}`, as this stage's `template` says",
                trained.name(),
                speaker.template().name()
            ));
        }
        Ok(Self { job, speaker, max_new_tokens: config.max_new_tokens(), features: HashMap::new() })
    }

    fn answer(&mut self, groups: &[&Group<'a>]) -> Result<Vec<String>, StageError> {
        let renamed = |error| self.job.renamed(error);
        let ids: Vec<Vec<i32>> =
            groups.iter().map(|group| self.ids(group)).collect::<Result<_, _>>().map_err(renamed)?;
        let (features, images) = self.encode(groups)?;
        let prompts: Vec<Sample<'_>> =
            ids.iter().zip(&images).map(|(ids, images)| Sample { input_ids: ids, labels: &[], images }).collect();
        let answers = self.speaker.answers(&prompts, &features, self.max_new_tokens, || self.job.cancelled());
        let answers = answers.map_err(|NotANumber { prompt, tokens }| {
            StageError::failed(
                format!("question {}: the model's output is not a number, after {tokens} token(s)", groups[prompt].id),
                "its weights are damaged or too large for the arithmetic: try `precision = \"f32\"`, and on a GPU also \
                 `device = \"cpu\"` under its runtime; if the CPU gives the same, train it again",
            )
        })?;
        // Answers that were cut off are none.
        self.job.check_cancelled()?;
        answers.iter().map(|ids| self.speaker.text(ids).map_err(|error| self.job.renamed(error))).collect()
    }

    /// The ids of a group's prompt, all of which the model reads.
    fn ids(&self, group: &Group<'a>) -> Result<Vec<i32>, StageError> {
        let ids = self.speaker.ids(&group.prompt, group.shown != Shown::Nothing)?;
        match self.speaker.positions(&ids) {
            (positions, most) if positions > most => Err(StageError::failed(
                format!(
                    "the prompt of question {} takes {positions} positions, and the model reads {most}: its end would be cut off",
                    group.id
                ),
                "shorten the question, or raise `tokenizer_model_max_length` in the model's config.json (`max_length` in training)",
            )),
            _ => Ok(ids),
        }
    }

    /// The features of the batch's images, each once, and for each group the number of its image, if it has one.
    fn encode(&mut self, groups: &[&Group<'a>]) -> Result<(Mat, Vec<Vec<usize>>), StageError> {
        let mut images: Vec<(Shown<'a>, &Id)> =
            groups.iter().map(|group| (group.shown, group.id)).filter(|(shown, _)| *shown != Shown::Nothing).collect();
        images.dedup_by_key(|(shown, _)| *shown);
        self.features.retain(|known, _| images.iter().any(|(image, _)| image == known));
        let new: Vec<_> = images.iter().filter(|(image, _)| !self.features.contains_key(image)).collect();
        let values = new.par_iter().map(|(image, id)| self.pixels(*image, id)).collect::<Result<Vec<_>, _>>()?;
        for ((image, _), values) in new.into_iter().zip(values) {
            self.features.insert(*image, self.speaker.encode(&values));
        }
        let parts: Vec<&Mat> = images.iter().map(|(image, _)| &self.features[image]).collect();
        let features = tensor::concat(&Graph::inference(), self.speaker.feature_width(), &parts);
        let numbers =
            groups.iter().map(|group| images.iter().position(|(image, _)| *image == group.shown).into_iter().collect());
        Ok((features, numbers.collect()))
    }

    fn pixels(&self, image: Shown<'_>, id: &Id) -> Result<Vec<f32>, StageError> {
        let (bytes, named) = match image {
            Shown::Nothing | Shown::Blank => return Ok(self.speaker.blank()),
            Shown::Image(Image::Embedded(bytes)) => (Cow::Borrowed(&**bytes), "the question file".into()),
            Shown::Image(Image::File(path)) => {
                (std::fs::read(path).map_err(StageError::io(path))?.into(), self.job.named(path))
            }
        };
        self.speaker.pixels(&bytes).map_err(|message| {
            let message = format!("the image of question {id} can't be used: {message}");
            StageError::input(named, message, "give the benchmark's own images")
        })
    }
}
