//! A model answers questions about images: prompts, batches, greedy decoding, and going on after an interruption.
//! Does not know benchmarks or scores.

use std::{borrow::Cow, collections::HashMap, ops::ControlFlow};

use imp_model::{
    GenerateOptions, Imp, Sample, StopStrings,
    config::ImageAspect,
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
    Job, StageError,
    contract::event::Progress,
    image::pixels::{AspectRatio, blank, pixels},
    model_folder::model_error,
    text::{template::Template, tokenizer::TextTokenizer},
};

/// Questions that are answered at a time, if the person does not say.
const BATCH: usize = 32;

/// A line of the log.
#[derive(Serialize, Deserialize)]
struct Answer<'a> {
    /// The question, by its place among all.
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
        let groups = groups(questions, config, answerer.template);
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

/// A loaded model with its tokenizer.
struct Answerer<'a> {
    job: &'a Job,
    model: Imp,
    tokenizer: TextTokenizer,
    template: Template,
    aspect_ratio: AspectRatio,
    options: GenerateOptions,
    /// The features `[patches, hidden]` of the images of the last batch: the next one often begins with the same image.
    features: HashMap<Shown<'a>, Mat>,
}

impl<'a> Answerer<'a> {
    fn load(config: &EvalConfig, job: &'a Job) -> Result<Self, StageError> {
        let folder = job.input("model")?;
        // Merged models have the tokenizer beside the weights, training stages keep the language model's folder.
        let beside = if folder.join("tokenizer.json").is_file() { folder.to_path_buf() } else { folder.join("llm") };
        let model = Imp::load(folder).map_err(|error| model_error(job, &error))?;
        let mut tokenizer = TextTokenizer::open(&beside, &job.named(&beside))?;
        let usual = || Template::of_family(model.llm.config.family, &tokenizer);
        let template = config.template.or_else(usual).ok_or_else(|| {
            StageError::failed(
                "no conversation template is known for this model's family",
                "name the one that it was trained with: `template = \"phi2\"` or `\"qwen2\"`",
            )
        })?;
        template.prepare(&mut tokenizer)?;
        let aspect_ratio = match &model.config.image_aspect_ratio {
            ImageAspect::Known(ratio) => *ratio,
            ImageAspect::Other(name) => {
                let (file, message) =
                    (job.named(&folder.join("config.json")), format!("`image_aspect_ratio` is `{name}`"));
                return Err(StageError::input(file, message, "it must be `square`, `pad` or `crop`"));
            }
        };
        let options = GenerateOptions {
            max_new_tokens: config.max_new_tokens(),
            stop: template.stop_ids(&tokenizer),
            ..GenerateOptions::default()
        };
        let answerer = Self { job, model, tokenizer, template, aspect_ratio, options, features: HashMap::new() };
        let ends: Vec<i32> = answerer.options.stop.iter().map(|id| *id as i32).collect();
        answerer.check_ids(&ends)?;
        Ok(answerer)
    }

    fn answer(&mut self, groups: &[&Group<'a>]) -> Result<Vec<String>, StageError> {
        let ids = groups.iter().map(|group| self.ids(&group.prompt)).collect::<Result<Vec<_>, _>>()?;
        let (features, images) = self.encode(groups)?;
        let prompts: Vec<Sample<'_>> =
            ids.iter().zip(&images).map(|(ids, images)| Sample { input_ids: ids, labels: &[], images }).collect();
        // A model may also spell the end of an answer as it spells words.
        let spell = |ids: &[u32]| self.tokenizer.decode(ids).unwrap_or_default();
        let end = StopStrings::new([self.template.stop_text().to_string()], spell);
        let answers = self.model.stream(&prompts, &features, &self.options, |_, answer| {
            if self.job.cancelled() { ControlFlow::Break(()) } else { end.check(answer) }
        });
        // Answers that were cut off are none.
        self.job.check_cancelled()?;
        answers.iter().map(|ids| self.text(ids)).collect()
    }

    fn ids(&self, prompt: &str) -> Result<Vec<i32>, StageError> {
        let ids = self.tokenizer.encode_with_images(prompt).map_err(|error| self.mismatch(&error))?;
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// A tokenizer that does not belong to the model must not become a wrong row of its embedding.
    fn check_ids(&self, ids: &[i32]) -> Result<(), StageError> {
        let rows = self.model.llm.config.vocab_size as i32;
        match ids.iter().find(|id| **id >= rows) {
            Some(id) => {
                Err(self.mismatch(&format!("the tokenizer's token {id} is beyond the model's {rows} embeddings")))
            }
            None => Ok(()),
        }
    }

    fn mismatch(&self, message: &str) -> StageError {
        let folder = self.job.input("model").map(|folder| self.job.named(folder)).unwrap_or_default();
        StageError::input(folder, message, "the model's tokenizer.json must be the one that it was trained with")
    }

    fn text(&self, ids: &[u32]) -> Result<String, StageError> {
        let text = self.tokenizer.decode(ids).map_err(|error| self.mismatch(&error))?;
        let end = text.find(self.template.stop_text()).unwrap_or(text.len());
        Ok(text[..end].trim().to_string())
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
            self.features.insert(*image, self.model.encode_images(&[values]));
        }
        let hidden = self.model.vision.config.hidden_size;
        let parts: Vec<&Mat> = images.iter().map(|(image, _)| &self.features[image]).collect();
        let features = tensor::concat(&Graph::inference(), hidden, &parts);
        let numbers =
            groups.iter().map(|group| images.iter().position(|(image, _)| *image == group.shown).into_iter().collect());
        Ok((features, numbers.collect()))
    }

    fn pixels(&self, image: Shown<'_>, id: &Id) -> Result<Vec<f32>, StageError> {
        let size = self.model.vision.config.image_size;
        let (bytes, named) = match image {
            Shown::Nothing | Shown::Blank => return Ok(blank(size)),
            Shown::Image(Image::Embedded(bytes)) => (Cow::Borrowed(&**bytes), "the question file".into()),
            Shown::Image(Image::File(path)) => {
                (std::fs::read(path).map_err(StageError::io(path))?.into(), self.job.named(path))
            }
        };
        pixels(&bytes, self.aspect_ratio, size).map_err(|message| {
            let message = format!("the image of question {id} can't be used: {message}");
            StageError::input(named, message, "give the benchmark's own images")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::eval::tests::{config, trial, workshop};

    #[test]
    fn an_end_that_is_spelled_out_is_no_part_of_the_answer() {
        let root = workshop();
        let job = trial(root.path(), "work").job();
        let answerer = Answerer::load(&config("pope"), &job).unwrap();
        let spelled: Vec<u32> = ["Red<", "/s> USER: more"]
            .iter()
            .flat_map(|text| answerer.tokenizer.encode(text).unwrap())
            .map(|id| id as u32)
            .collect();
        assert_eq!(answerer.tokenizer.decode(&spelled).unwrap(), "Red</s> USER: more");
        assert_eq!(answerer.text(&spelled).unwrap(), "Red");
    }
}
