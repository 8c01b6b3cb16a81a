//! The files beside a model's weights that other programs read: the tokenizer with every token of the training, chat template,
//! image processor and generation settings. Independent of weights and their layout. Fields: transformers 4.49 to 5.24;
//! `docs/deploy.md` says what was loaded with them.

mod chat_template;
mod mlc_chat;
#[cfg(test)]
mod tests;

use std::path::Path;

use imp_model::{Imp, config::VisionConfig, gguf::Speech, llava::Tokens};
use serde_json::{Map, Value, json};

pub(crate) use chat_template::{chat_template, marked_chat_template};
pub(crate) use mlc_chat::{MLC_CHAT, TOKENIZER_FILES};

use crate::{
    Job, StageError,
    model_folder::tokenizer_folder,
    speaker::template_of,
    text::{
        identity::check_tokenizer,
        template::{PAD, Template},
        tokenizer::{IMAGE_TEXT, TextTokenizer},
    },
};

/// Files of older tokenizers, which would contradict those that are written.
pub(crate) const REPLACED: [&str; 3] = ["added_tokens.json", "chat_template.json", "special_tokens_map.json"];

/// How a model talks: its tokenizer with every token of its template, and the template.
pub(crate) struct Manner {
    pub(crate) template: Template,
    tokenizer: TextTokenizer,
    /// The settings of the tokenizer that the model came with.
    settings: Map<String, Value>,
}

/// The settings of a tokenizer; none if there is no such file.
fn settings(job: &Job, file: &Path) -> Result<Map<String, Value>, StageError> {
    match std::fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            let message = format!("these are no settings of a tokenizer: {error}");
            StageError::input(job.named(file), message, "download the file again, or remove it")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(source) => Err(StageError::Io { path: file.to_path_buf(), source }),
    }
}

impl Manner {
    /// The manner of the model in `folder`; `None` if it has no tokenizer, or was trained on captions only and no template is known
    /// for its family.
    ///
    /// # Errors
    /// If the tokenizer can't be read, or is not that of the model's training.
    pub(crate) fn of(job: &Job, model: &Imp, folder: &Path) -> Result<Option<Self>, StageError> {
        let beside = tokenizer_folder(folder);
        if !TextTokenizer::is_in(&beside) {
            return Ok(None);
        }
        let mut tokenizer = TextTokenizer::open(&beside, &job.named(&beside))?;
        let Some(template) =
            template_of(model, &tokenizer, &job.named(folder))?.filter(|known| *known != Template::Plain)
        else {
            return Ok(None);
        };
        template.prepare(&mut tokenizer)?;
        check_tokenizer(&tokenizer, &model.config, &job.named(&beside))?;
        Ok(Some(Self { template, tokenizer, settings: settings(job, &beside.join("tokenizer_config.json"))? }))
    }

    /// Adds the token that stands for an image feature: it takes the first free id.
    pub(crate) fn add_image_token(&mut self) {
        self.tokenizer.add_special(IMAGE_TEXT);
    }

    /// The ids that programs have to know. The image token must have been added.
    pub(crate) fn tokens(&self) -> Option<Tokens> {
        let image = self.tokenizer.id(IMAGE_TEXT)?;
        Some(Tokens { image, stop: self.stop(), pad: self.pad() })
    }

    /// Calls `write` with what a GGUF file says of texts.
    ///
    /// # Errors
    /// If the tokenizer can't be written, or `write` fails.
    pub(crate) fn speech<T>(
        &self,
        model: &Imp,
        write: impl FnOnce(&Speech<'_>) -> Result<T, StageError>,
    ) -> Result<T, StageError> {
        let unreadable = |error: serde_json::Error| {
            StageError::failed(
                format!("the tokenizer can't be written: {error}"),
                "download its `tokenizer.json` again",
            )
        };
        let tokenizer = serde_json::from_str(&self.tokenizer_json()?).map_err(unreadable)?;
        write(&Speech {
            tokenizer: &tokenizer,
            chat_template: &marked_chat_template(self.template).unwrap_or_default(),
            add_bos: self.tokenizer.leading() > 0,
            bos: self.tokenizer.bos().or(model.llm.config.bos_token_id),
            eos: self.stop().first().copied().unwrap_or_default(),
            pad: self.pad(),
        })
    }

    fn tokenizer_json(&self) -> Result<String, StageError> {
        self.tokenizer.to_json().map_err(|error| {
            StageError::failed(
                format!("the tokenizer can't be written: {error}"),
                "download its `tokenizer.json` again",
            )
        })
    }

    fn stop(&self) -> Vec<u32> {
        let mut stop = self.template.stop_ids(&self.tokenizer);
        stop.dedup();
        stop
    }

    fn pad_text(&self) -> &'static str {
        [PAD, "<unk>"].into_iter().find(|token| self.tokenizer.id(token).is_some()).unwrap_or(self.template.stop_text())
    }

    fn pad(&self) -> u32 {
        self.tokenizer.id(self.pad_text()).unwrap_or_default()
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json`, `generation_config.json`, `chat_template.jinja` and
    /// `preprocessor_config.json`, and with an image token `processor_config.json`.
    ///
    /// # Errors
    /// If the output can't be written.
    pub(crate) fn write(&self, job: &Job, model: &Imp) -> Result<(), StageError> {
        let vision = &model.vision.config;
        let has_image_token = self.tokenizer.id(IMAGE_TEXT).is_some();
        let jinja = chat_template(self.template).unwrap_or_default();
        write(job, "tokenizer.json", &self.tokenizer_json()?)?;
        write_json(job, "tokenizer_config.json", &self.tokenizer_config(model))?;
        write_json(job, "generation_config.json", &self.generation_config(model))?;
        write(job, "chat_template.jinja", &jinja)?;
        write_json(job, "preprocessor_config.json", &preprocessor_config(vision, has_image_token))?;
        if has_image_token {
            write_json(job, "processor_config.json", &processor_config(vision))?;
        }
        Ok(())
    }

    fn tokenizer_config(&self, model: &Imp) -> Value {
        let mut config = self.settings.clone();
        config.remove("chat_template");
        config.remove("auto_map");
        config.entry("tokenizer_class").or_insert(json!("PreTrainedTokenizerFast"));
        config.insert("eos_token".into(), json!(self.template.stop_text()));
        config.insert("pad_token".into(), json!(self.pad_text()));
        config.insert("model_max_length".into(), json!(model.config.tokenizer_model_max_length));
        config.insert("clean_up_tokenization_spaces".into(), json!(false));
        // Others would be given to `generate`, which refuses them.
        config.insert("model_input_names".into(), json!(["input_ids", "attention_mask"]));
        if let Some(Value::Object(known)) = config.get_mut("added_tokens_decoder") {
            for (id, token) in self.tokenizer.added() {
                known.entry(id.to_string()).or_insert_with(|| {
                    json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false,
                        "special": true})
                });
            }
        }
        if self.tokenizer.id(IMAGE_TEXT).is_some() {
            config.insert("image_token".into(), json!(IMAGE_TEXT));
            config.insert("processor_class".into(), json!("LlavaProcessor"));
        }
        Value::Object(config)
    }

    /// What stops `generate` is written here, not in the tokenizer.
    fn generation_config(&self, model: &Imp) -> Value {
        json!({
            "bos_token_id": model.llm.config.bos_token_id,
            "eos_token_id": match self.stop().as_slice() {
                [one] => json!(one),
                all => json!(all),
            },
            "pad_token_id": self.pad(),
            "do_sample": false,
        })
    }
}

fn preprocessor_config(vision: &VisionConfig, has_image_token: bool) -> Value {
    let mut config = vision.encoder.processor_json(&vision.images, vision.image_size);
    if has_image_token {
        config["processor_class"] = json!("LlavaProcessor");
    }
    config
}

fn processor_config(vision: &VisionConfig) -> Value {
    let has_class = vision.encoder.has_class();
    json!({
        "processor_class": "LlavaProcessor",
        "image_token": IMAGE_TEXT,
        "num_additional_image_tokens": usize::from(has_class),
        "patch_size": vision.patch_size,
        // The class token is counted among the features, and dropped by default.
        "vision_feature_select_strategy": if has_class { "default" } else { "full" },
    })
}

fn write(job: &Job, name: &str, text: &str) -> Result<(), StageError> {
    let path = job.output().join(name);
    std::fs::write(&path, text).map_err(StageError::io(&path))
}

fn write_json(job: &Job, name: &str, value: &Value) -> Result<(), StageError> {
    write(job, name, &format!("{value:#}\n"))
}
