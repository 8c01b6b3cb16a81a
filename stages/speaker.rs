//! A loaded model with its tokenizer and template: it answers batches of prompts about images. `conversation/` talks with it.
//! Independent of jobs, benchmarks and where images come from.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use imp_model::{
    GenerateOptions, IMAGE_TOKEN, Imp, NotANumber, Sample, StopStrings,
    config::{Family, ImageAspect, ImpConfig},
    tensor::{Mat, Place},
};

use crate::{
    StageError,
    contract::forecast::Outlook,
    image::pixels::{self, AspectRatio, Recipe},
    model_folder::{stage_error, tokenizer_folder},
    text::{identity::check_tokenizer, template::Template, tokenizer::TextTokenizer},
};

/// A loaded model with its tokenizer and template.
pub struct Speaker {
    folder: PathBuf,
    model: Imp,
    tokenizer: TextTokenizer,
    template: Template,
    aspect_ratio: AspectRatio,
    /// The tokens that end an answer.
    stop: Vec<u32>,
    /// The template that the model was trained in, if it says so.
    trained: Option<Template>,
}

/// The template that a model is asked in: that of its training, or else that of its family, if there is one. Messages call its
/// folder `named`.
///
/// # Errors
/// If the model names a template that is not known.
pub(crate) fn template_of(
    model: &Imp,
    tokenizer: &TextTokenizer,
    named: &Path,
) -> Result<Option<Template>, StageError> {
    Ok(usual_template(trained_template(&model.config, named)?, model, tokenizer))
}

fn usual_template(trained: Option<Template>, model: &Imp, tokenizer: &TextTokenizer) -> Option<Template> {
    // A model that was trained on captions only was taught no template.
    trained.or_else(|| Template::of_family(model.llm.config.family, tokenizer))
}

/// How a model's images are made square.
///
/// # Errors
/// In words, if it is in a way that is not implemented.
pub(crate) fn aspect_ratio(config: &ImpConfig) -> Result<AspectRatio, String> {
    match &config.image_aspect_ratio {
        ImageAspect::Known(ratio) => Ok(*ratio),
        ImageAspect::Other(name) => Err(format!("`image_aspect_ratio` is `{name}`")),
    }
}

/// The template of the model's training, which its folder names.
fn trained_template(config: &ImpConfig, folder: &Path) -> Result<Option<Template>, StageError> {
    let Some(name) = &config.conversation_template else { return Ok(None) };
    Template::by_name(name).map(Some).ok_or_else(|| {
        let message = format!("`conversation_template` is `{name}`, which this version does not know");
        let help = format!(
            "use the version of imp-flow that trained the model, or set `template` to one of {}",
            Template::choices()
        );
        StageError::input(folder.join("config.json"), message, help)
    })
}

/// Why [`Speaker::open`] will find no template for a model that is not there yet, or may find none.
pub(crate) fn without_template(model: &Outlook) -> Option<String> {
    let choices = Template::choices();
    match &model.joined.as_ref()?.conversation_template {
        Some(name) => Template::by_name(name).is_none().then(|| {
            format!("its model was trained in the template `{name}`, which this version does not know: set `template` to one of {choices}")
        }),
        // The tokens of its tokenizer may tell.
        None => (model.llm.as_ref()?.config.family == Family::Llama).then(|| {
            format!("it may find no template: its model's training names none, and Llamas are trained in many. Set `template` to one of {choices}")
        }),
    }
}

impl Speaker {
    /// Opens the model in `folder` to compute at `place`. Without a `template` it is the one that the model was
    /// trained in, or else that of its family.
    ///
    /// # Errors
    /// If a file is missing or damaged, or if the tokenizer is not the model's.
    pub fn open(folder: &Path, template: Option<Template>, place: &Place) -> Result<Self, StageError> {
        let beside = tokenizer_folder(folder);
        let mut model = Imp::load(folder).map_err(|error| stage_error(&error))?;
        model.move_to(place);
        let mut tokenizer = TextTokenizer::open(&beside, &beside)?;
        let trained = match trained_template(&model.config, folder) {
            Err(error) if template.is_none() => return Err(error),
            trained => trained.ok().flatten(),
        };
        let template = template.or_else(|| usual_template(trained, &model, &tokenizer)).ok_or_else(|| {
            StageError::failed(
                "no conversation template is known for this model's family",
                format!("set `template` to the one that it was trained with: {}", Template::choices()),
            )
        })?;
        template.prepare(&mut tokenizer)?;
        check_tokenizer(&tokenizer, &model.config, &beside)?;
        let aspect_ratio = aspect_ratio(&model.config).map_err(|message| {
            StageError::input(folder.join("config.json"), message, "it must be `square`, `pad` or `crop`")
        })?;
        let stop = template.stop_ids(&tokenizer);
        let speaker = Self { folder: folder.to_path_buf(), model, tokenizer, template, aspect_ratio, stop, trained };
        let ends: Vec<i32> = speaker.stop.iter().map(|id| *id as i32).collect();
        speaker.check_ids(&ends)?;
        Ok(speaker)
    }

    /// The template of its conversations.
    pub fn template(&self) -> Template {
        self.template
    }

    /// The model.
    pub fn model(&self) -> &Imp {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The ids of the tokens that end an answer.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop
    }

    /// The template that the model was trained in, if that is another.
    pub fn trained_otherwise(&self) -> Option<Template> {
        self.trained.filter(|trained| *trained != self.template)
    }

    /// The number of positions of a prompt, and the most that the model reads.
    pub fn positions(&self, ids: &[i32]) -> (usize, usize) {
        let images = ids.iter().filter(|id| **id == IMAGE_TOKEN).count();
        let patches = self.model.vision.config.patches();
        (ids.len() + images * patches - images, self.model.config.tokenizer_model_max_length)
    }

    /// Makes the model read fewer positions.
    #[cfg(test)]
    pub(crate) fn shorten(&mut self, positions: usize) {
        self.model.config.tokenizer_model_max_length = positions;
    }

    /// The token ids of a prompt. If it is about an image, the first `<image>` stands for that; any other is text.
    ///
    /// # Errors
    /// If the tokenizer is not the model's.
    pub fn ids(&self, prompt: &str, about_image: bool) -> Result<Vec<i32>, StageError> {
        self.checked(if about_image { self.tokenizer.encode_prompt(prompt) } else { self.tokenizer.encode(prompt) })
    }

    /// The token ids of a prompt that is cut into parts by its images.
    ///
    /// # Errors
    /// If the tokenizer is not the model's.
    pub fn ids_of_parts(&self, parts: &[String]) -> Result<Vec<i32>, StageError> {
        self.checked(self.tokenizer.encode_parts(parts.iter().map(String::as_str)))
    }

    fn checked(&self, ids: Result<Vec<i32>, String>) -> Result<Vec<i32>, StageError> {
        let ids = ids.map_err(|error| self.mismatch(&error))?;
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
        let help = "the model's tokenizer.json must be the one that it was trained with";
        StageError::input(&self.folder, message, help)
    }

    /// The pixel values of an encoded image.
    ///
    /// # Errors
    /// In words, if it can't be decoded.
    pub fn pixels(&self, encoded: &[u8]) -> Result<Vec<f32>, String> {
        Recipe::new(self.aspect_ratio, &self.model.vision.config).pixels(encoded)
    }

    /// The pixel values of an image without content.
    pub fn blank(&self) -> Vec<f32> {
        pixels::blank(self.model.vision.config.image_size)
    }

    /// The features `[patches, hidden]` of one image.
    pub fn encode(&self, pixels: &[f32]) -> Mat {
        self.model.encode_images(&[pixels])
    }

    /// Width of the features.
    pub fn feature_width(&self) -> usize {
        self.model.vision.config.hidden_size
    }

    /// The tokens of the answer to each prompt, most probable token first. `stopped` is asked after each token.
    ///
    /// # Errors
    /// If the model's output is not a number.
    pub fn answers(
        &self,
        prompts: &[Sample<'_>],
        features: &Mat,
        max_new_tokens: usize,
        stopped: impl Fn() -> bool,
    ) -> Result<Vec<Vec<u32>>, NotANumber> {
        let options = GenerateOptions { max_new_tokens, stop: self.stop.clone(), ..GenerateOptions::default() };
        let end = self.end();
        self.model.stream(prompts, features, &options, |_, answer| {
            if stopped() { ControlFlow::Break(()) } else { end.check(answer) }
        })
    }

    /// Why the tokens of its answers take longer than they should, if that is new.
    pub fn slowed(&self) -> Option<String> {
        let refusal = self.model.vision.place().device?.refusal()?;
        Some(format!("the GPU does not make all calls of a token as one, so answers take longer: {refusal}"))
    }

    /// A model may also spell the end of an answer as it spells words.
    fn end(&self) -> StopStrings<impl Fn(&[u32]) -> String> {
        let spell = |ids: &[u32]| self.tokenizer.decode(ids).unwrap_or_default();
        StopStrings::new([self.template.stop_text().to_string()], spell)
    }

    /// The text of an answer, without its end.
    ///
    /// # Errors
    /// If the tokenizer is not the model's.
    pub fn text(&self, ids: &[u32]) -> Result<String, StageError> {
        let text = self.tokenizer.decode(ids).map_err(|error| self.mismatch(&error))?;
        let end = text.find(self.template.stop_text()).unwrap_or(text.len());
        Ok(text[..end].trim().to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use imp_model::Precision;

    use super::*;
    use crate::eval::tests::{trial, workshop};

    #[test]
    fn an_end_that_is_spelled_out_is_no_part_of_the_answer() {
        let root = workshop();
        let job = trial(root.path(), "work").job();
        let place = Place::host(Precision::F32);
        let speaker = Speaker::open(job.input("model").unwrap(), None, &place).unwrap();
        let spelled: Vec<u32> = ["Red<", "/s> USER: more"]
            .iter()
            .flat_map(|text| speaker.tokenizer.encode(text).unwrap())
            .map(|id| id as u32)
            .collect();
        assert_eq!(speaker.tokenizer.decode(&spelled).unwrap(), "Red</s> USER: more");
        assert_eq!(speaker.text(&spelled).unwrap(), "Red");
    }

    #[test]
    fn only_the_first_mark_of_an_image_is_one() {
        let root = workshop();
        let job = trial(root.path(), "work").job();
        let place = Place::host(Precision::F32);
        let speaker = Speaker::open(job.input("model").unwrap(), None, &place).unwrap();
        let question = "What does <image> mean in \"<image>\"?";
        for (prompt, about_image) in
            [(speaker.template.prompt(question), true), (speaker.template.prompt_without_image(question), false)]
        {
            let ids = speaker.ids(&prompt, about_image).unwrap();
            assert_eq!(ids.iter().filter(|id| **id == IMAGE_TOKEN).count(), usize::from(about_image));
            let words: Vec<u32> = ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
            assert!(speaker.tokenizer.decode(&words).unwrap().contains(question), "every character is asked");
        }
    }
}
