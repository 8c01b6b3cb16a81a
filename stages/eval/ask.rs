//! Asks a model all questions: groups of equal prompts, batches, and a log to resume from after an interruption.
//! Independent of benchmarks and scores.

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use imp_model::{
    NotANumber, Sample,
    tensor::{self, Graph, Mat, Place},
};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    config::EvalConfig,
    log::Log,
    question::{Id, Image, Question},
};
use crate::{
    Job, StageError,
    contract::event::Progress,
    model_folder::remark,
    place::{each, lock, places},
    speaker::Speaker,
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

/// Answers, of which each is in the log as soon as its batch is answered.
struct Answers<'a> {
    job: &'a Job,
    log: Log,
    /// By question.
    all: Vec<Option<String>>,
}

impl<'a> Answers<'a> {
    /// Those that an earlier process has logged.
    fn logged(questions: usize, job: &'a Job) -> Result<Self, StageError> {
        let (log, known) = Log::open::<Answer<'_>>(&job.checkpoint(), "answers.jsonl")?;
        let mut answers = Self { job, log, all: vec![None; questions] };
        for Answer { number, text } in known {
            if let Some(answer) = answers.all.get_mut(number) {
                *answer = Some(text.into_owned());
            }
        }
        answers.report();
        Ok(answers)
    }

    fn report(&self) {
        self.job.progress(Progress::new(self.all.iter().flatten().count(), self.all.len(), "questions"));
    }

    /// Whether one of the questions of a batch has no answer.
    fn lacks(&self, batch: &[Group<'_>]) -> bool {
        batch.iter().flat_map(|group| &group.questions).any(|question| self.all[*question].is_none())
    }

    /// Adds those to a batch, all of which are in the log at once.
    fn add(&mut self, batch: &[Group<'_>], texts: &[String]) -> Result<(), StageError> {
        let answered = || {
            let groups = batch.iter().zip(texts);
            groups.flat_map(|(group, text)| group.questions.iter().map(move |number| (*number, text)))
        };
        self.log.add(answered().map(|(number, text)| Answer { number, text: text.as_str().into() }))?;
        for (number, text) in answered() {
            self.all[number] = Some(text.clone());
        }
        self.report();
        Ok(())
    }
}

/// The answers to all questions, in their order. A batch is asked as a whole on one of the stage's devices, so that the answers
/// don't depend on their number, nor on interruptions.
pub(super) fn all(questions: &[Question], config: &EvalConfig, job: &Job) -> Result<Vec<String>, StageError> {
    let answers = Answers::logged(questions.len(), job)?;
    if answers.all.iter().all(Option::is_some) {
        return Ok(answers.all.into_iter().flatten().collect());
    }
    let mut answerers = Answerer::load(config, job)?;
    let groups = groups(questions, config, answerers[0].speaker.template());
    let size = if job.runtime().micro_batch_size == 0 { BATCH } else { job.runtime().micro_batch_size };
    let batches: Vec<&[Group<'_>]> = groups.chunks(size).filter(|batch| answers.lacks(batch)).collect();
    let (batches, stopped) = (Mutex::new(batches.into_iter()), AtomicBool::new(false));
    let next = || lock(&batches).next().filter(|_| !stopped.load(Ordering::Relaxed));
    let answers = Mutex::new(answers);
    let stop = || stopped.store(true, Ordering::Relaxed);
    each(&mut answerers, stop, |_, answerer| {
        while let Some(batch) = next() {
            job.check_cancelled()?;
            let texts = answerer.answer(batch)?;
            lock(&answers).add(batch, &texts)?;
        }
        Ok(())
    })?;
    let slowed: BTreeSet<String> = answerers.iter().filter_map(|answerer| answerer.speaker.slowed()).collect();
    for why in slowed {
        job.warn(why);
    }
    let answers = answers.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(answers.all.into_iter().map(Option::unwrap_or_default).collect())
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
    /// One on each of the stage's devices.
    fn load(config: &EvalConfig, job: &'a Job) -> Result<Vec<Self>, StageError> {
        let (mut places, folder) = (places(job, config.precision)?, job.input("model")?);
        let open = |_: usize, place: &mut Place| Speaker::open(folder, config.template, place);
        let speakers = each(&mut places, || (), open).map_err(|error| job.renamed(error))?;
        remark(job, folder);
        if let Some((speaker, trained)) = speakers.first().and_then(|first| Some((first, first.trained_otherwise()?))) {
            job.caution(format!(
                "the model was trained in the template `{}` and is asked in `{}`, as this stage's `template` says",
                trained.name(),
                speaker.template().name()
            ));
        }
        let of = |speaker| Self { job, speaker, max_new_tokens: config.max_new_tokens(), features: HashMap::new() };
        Ok(speakers.into_iter().map(of).collect())
    }

    fn answer(&mut self, groups: &[Group<'a>]) -> Result<Vec<String>, StageError> {
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
    fn encode(&mut self, groups: &[Group<'a>]) -> Result<(Mat, Vec<Vec<usize>>), StageError> {
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
