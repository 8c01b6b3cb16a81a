//! One question to a model, outside of any pipeline. Independent of how the answer is shown.

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
};

pub use imp_model::Precision;
use imp_model::Sampling;

use crate::{
    StageError,
    contract::{
        bytes::ByteSize,
        device::{Device, DeviceChoice},
    },
    conversation::{Conversation, Ended, Image, Manner, NoAnswer, Prompt, refuse_turns},
    model_folder::remarks,
    place,
    speaker::Speaker,
};

/// Larger files are no images.
const LARGEST_IMAGE: ByteSize = ByteSize(500_000_000);

/// Where a model computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Where {
    /// On the CPU, on the first GPU, or on that if it can be used.
    pub device: DeviceChoice,
    /// How exactly; without it in f32 on the CPU, and in bf16 on a GPU.
    pub precision: Option<Precision>,
}

/// A question, and how it is to be answered.
#[derive(Clone, Debug)]
pub struct Question {
    /// The folder of a model, or `model.gguf` in it.
    pub model: PathBuf,
    /// The text.
    pub text: String,
    /// The file of the image that it is about.
    pub image: Option<PathBuf>,
    /// The most tokens of the answer.
    pub max_tokens: usize,
    /// Divides the logits before a token is drawn; 0 always takes the most likely one.
    pub temperature: f32,
    /// Tokens are drawn from the most likely ones that together have this probability.
    pub top_p: f32,
    /// The seed of the draws.
    pub seed: u64,
    /// Where the model computes.
    pub place: Where,
}

/// How an answer was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What the model read.
    pub prompt: String,
    /// The number of tokens of the answer.
    pub tokens: usize,
    /// Whether it ended only because it may have no more tokens.
    pub cut: bool,
    /// Where the model computed.
    pub device: Device,
    /// What of the model's folder is not used, although it may matter, and why it took longer than it should.
    pub cautions: Vec<String>,
}

/// Answers `question`. Calls `told` with each new part of the answer.
///
/// # Errors
/// If model or image can't be read, the question is too long, or the model's output is not a number.
pub fn ask(question: &Question, mut told: impl FnMut(&str)) -> Result<Answered, StageError> {
    let image = question.image.as_deref().map(read_image).transpose()?;
    let Opened { speaker, device, mut cautions } = open(&question.model, question.place)?;
    let (text, template, about_image) = (&question.text, speaker.template(), image.is_some());
    refuse_turns(template, [text.as_str()]).map_err(|error| failure(&error, None))?;
    let text = if about_image { template.prompt(text) } else { template.prompt_without_image(text) };
    let prompt = Prompt { ids: speaker.ids(&text, about_image)?, images: image.into_iter().collect() };
    let Question { temperature, top_p, seed, max_tokens, .. } = *question;
    let sampling = Sampling { temperature, top_p, seed, ..Sampling::default() };
    let manner = Manner { max_tokens, sampling, stop: Vec::new() };
    let ends = vec![template.stop_text().to_string()];
    let go_on = |part: &str| {
        told(part);
        ControlFlow::Continue(())
    };
    let reply = Conversation::new(&speaker).respond(&prompt, &manner, ends, go_on);
    let reply = reply.map_err(|error| failure(&error, question.image.as_deref()))?;
    let cut = matches!(reply.ended, Ended::MaxTokens | Ended::ContextFull);
    cautions.extend(speaker.slowed());
    Ok(Answered { prompt: text, tokens: reply.tokens, cut, device, cautions })
}

/// A model that can be asked.
pub struct Opened {
    /// The model.
    pub speaker: Speaker,
    /// Where it computes.
    pub device: Device,
    /// Why it does not compute where it might, and what of its folder is not used, although it may matter.
    pub cautions: Vec<String>,
}

/// Opens a model, which is a folder or `model.gguf` in it.
///
/// # Errors
/// If it can't be read, or can't compute where it must.
pub fn open(model: &Path, Where { device, precision }: Where) -> Result<Opened, StageError> {
    let folder = folder(model)?;
    let (place, elsewhere) = place::asked(device, precision)?;
    let speaker = place::guarded(|| Speaker::open(folder, None, &place))??;
    let device = if place.device.is_some() { Device::Cuda } else { Device::Cpu };
    let cautions = elsewhere.into_iter().chain(remarks(folder, folder)).collect();
    Ok(Opened { speaker, device, cautions })
}

/// Why there is no answer, as an error of the whole program.
fn failure(error: &NoAnswer, image: Option<&Path>) -> StageError {
    let help = match (error, image) {
        (NoAnswer::ContextFull { .. }, _) => "ask a shorter question",
        (NoAnswer::Image { message, .. }, Some(file)) => {
            return StageError::input(file, message.as_str(), "give an image in PNG, JPEG, WebP, GIF, BMP or TIFF");
        }
        (NoAnswer::TurnToken(_), _) => "write it in another way",
        (NoAnswer::Device(error), _) => error.help().unwrap_or_default(),
        (NoAnswer::NotANumber(_), _) => "its training may have diverged: ask an earlier model",
        _ => "",
    };
    StageError::failed(error.to_string(), help)
}

/// The content of an image's file. What is no file would be waited for, or would never end.
///
/// # Errors
/// If it can't be read.
pub fn read_image(file: &Path) -> Result<Image, StageError> {
    let data = std::fs::metadata(file).map_err(StageError::io(file))?;
    if !data.is_file() || data.len() > LARGEST_IMAGE.0 {
        let message = format!("this is not a file of at most {LARGEST_IMAGE}");
        return Err(StageError::input(file, message, "give an image file"));
    }
    std::fs::read(file).map(Image::new).map_err(StageError::io(file))
}

/// The folder of a model.
///
/// # Errors
/// If there is none at this path.
pub fn folder(model: &Path) -> Result<&Path, StageError> {
    let folder = match model.parent() {
        Some(folder) if model.is_file() && model.ends_with(imp_model::gguf::MODEL) => folder,
        _ => model,
    };
    if folder.join("config.json").is_file() {
        return Ok(folder);
    }
    if model.is_file() {
        return Err(StageError::input(
            model,
            "this file is no model by itself",
            "give its folder, or `model.gguf` in it",
        ));
    }
    let what = if model.exists() { "this is no model: it has no config.json" } else { "there is no such folder" };
    Err(StageError::input(model, what, "give the artifact of finetune, merge or quantize, as in artifacts/tiny/merge"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::eval::tests::workshop;

    fn question(root: &Path, image: bool) -> Question {
        Question {
            model: root.join("model"),
            text: "What is it?".into(),
            image: image.then(|| root.join("data/eval/images/000000000001.png")),
            max_tokens: 12,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            place: Where { device: DeviceChoice::Cpu, precision: None },
        }
    }

    #[test]
    fn the_parts_of_an_answer_are_the_answer() {
        let root = workshop();
        for image in [false, true] {
            let (mut parts, mut again) = (Vec::new(), String::new());
            let answered = ask(&question(root.path(), image), |new| parts.push(new.to_string())).unwrap();
            assert_eq!(answered.prompt.contains("<image>"), image);
            assert!(answered.tokens <= 12 && (answered.cut == (answered.tokens == 12)));
            ask(&question(root.path(), image), |new| again.push_str(new)).unwrap();
            assert_eq!(parts.concat(), again);
            assert_eq!(again, again.trim());
            // Drawn tokens depend on the seed only.
            let drawn = |seed| {
                let mut text = String::new();
                let hot = Question { temperature: 2.0, seed, ..question(root.path(), image) };
                ask(&hot, |new| text.push_str(new)).unwrap();
                text
            };
            assert_eq!(drawn(1), drawn(1));
            assert_ne!(drawn(1), drawn(2));
        }
    }

    #[test]
    fn what_can_not_be_asked_is_refused_in_words() {
        let root = workshop();
        let refused = |change: &dyn Fn(&mut Question)| {
            let mut question = question(root.path(), true);
            change(&mut question);
            let error = ask(&question, |_| {}).unwrap_err();
            format!("{error} ({})", error.help().unwrap_or_default())
        };
        for (error, words) in [
            (refused(&|q| q.model = root.path().join("nowhere")), "there is no such folder (give the artifact"),
            (
                refused(&|q| q.model = root.path().join("model/config.json")),
                "config.json: this file is no model by itself (give its folder",
            ),
            (refused(&|q| q.image = Some("/dev/zero".into())), "this is not a file of at most 500 MB"),
            (refused(&|q| q.model = root.path().join("data")), "this is no model: it has no config.json"),
            (refused(&|q| q.image = Some(root.path().join("model/config.json"))), "give an image in PNG"),
            (refused(&|q| q.image = Some(root.path().join("none.png"))), "none.png"),
            (refused(&|q| q.text = "word ".repeat(5000)), "positions, and the model reads"),
        ] {
            assert!(error.contains(words), "{error}");
        }
    }
}
