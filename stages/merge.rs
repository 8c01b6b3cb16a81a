//! The kind `merge`: adds adapters to the weights and writes the whole model as one Hugging Face folder.
//! Independent of how the model was trained.

use std::{collections::BTreeMap, path::Path};

use imp_model::{
    Components, Imp,
    config::ConfigFile,
    encoding::Encoding,
    llava::{self, Tokens},
    projector_in, save,
};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        bytes::ByteSize,
        forecast::{Ahead, Forecast},
        input::Input,
        keys::{Key, Keys, keys},
        stage::ConfigIssue,
    },
    hub_files::{Manner, REPLACED},
    image::pixels::AspectRatio,
    model_folder::{link_others_but, model_error, remark, tokenizer_folder},
    speaker::aspect_ratio,
    text::tokenizer::TextTokenizer,
};

/// Smaller files would be thousands.
const SMALLEST_SHARD: ByteSize = ByteSize(1_000_000);

/// The kind `merge`.
pub struct Merge;

/// The number format of the weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, as in the published models.
    #[default]
    F16,
}

impl DType {
    fn encoding(self) -> Encoding {
        match self {
            Self::F32 => Encoding::F32,
            Self::F16 => Encoding::F16,
        }
    }
}

/// The layout of the folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// That of Imp's training code.
    #[default]
    Imp,
    /// That of transformers' `LlavaForConditionalGeneration`.
    LlavaHf,
}

keys! {
    /// The keys of `merge`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Layout of the folder. `imp` is that of Imp's training code; `llava-hf` is transformers' own Llava, which transformers,
        /// vLLM and others load without code of ours.
        pub format: Format = Format::Imp,
        /// Format of the weights; `f16` in the published models.
        pub dtype: DType = DType::F16,
        /// Weights that take more are written to several files of at most this size.
        pub max_shard_size: ByteSize = ByteSize(5_000_000_000),
        /// Published code that loads the format `imp` in transformers, for `config.json`:
        /// `AutoConfig = "owner/repo--module.Class"` and the same for `AutoModelForCausalLM`.
        pub auto_map: BTreeMap<String, String> = BTreeMap::new(),
    }
}

impl Stage for Merge {
    const KIND: &'static str = "merge";
    const VERSION: u32 = 8;
    const ABOUT: &'static str = "adds adapters to the weights and writes the whole model to one folder";
    const INPUTS: &'static [Input] = &[
        Input::required("model", "a finetuned model"),
        Input::optional(
            "llm",
            "the base of an adapter or projector that LLaVA's or Imp's own scripts have left in `model`",
        ),
        Input::optional("vision", "the vision encoder of such a base"),
    ];
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        if config.max_shard_size < SMALLEST_SHARD {
            return Err(ConfigIssue::new("max_shard_size", format!("must be at least {SMALLEST_SHARD}")));
        }
        if let Some(name) = config.auto_map.keys().find(|name| !name.starts_with("Auto")) {
            return Err(ConfigIssue::new(
                format!("auto_map.{name}"),
                "must be one of transformers' classes, as `AutoConfig`",
            ));
        }
        match config.auto_map.iter().find(|(_, code)| !is_code(code)) {
            Some((name, code)) => {
                let message = format!("`{code}` must be like `owner/repo--module.Class`");
                Err(ConfigIssue::new(format!("auto_map.{name}"), message))
            }
            None if !config.auto_map.is_empty() && config.format != Format::Imp => {
                Err(ConfigIssue::new("auto_map", "is for the format `imp`: transformers has the code for `llava-hf`"))
            }
            None => Ok(()),
        }
    }

    fn check_inputs(_config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        let missing = ["llm", "vision"].into_iter().filter(|name| count(name) == 0).collect::<Vec<_>>();
        match missing[..] {
            [one] => {
                Err(ConfigIssue::new(one, "is needed, too: `llm` and `vision` are the parts that were not trained"))
            }
            _ => Ok(()),
        }
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let mut outlook = ahead.input("model").cloned().unwrap_or_default();
        if let (Some(llm), Some(vision)) = (ahead.input("llm"), ahead.input("vision")) {
            (outlook.llm, outlook.vision) = (llm.llm.clone(), vision.vision.clone());
        }
        if let Some(llm) = &mut outlook.llm {
            llm.bytes = (config.dtype.encoding().block().bytes * llm.config.parameters()) as u64;
        }
        outlook.adapted = false;
        let towers = outlook.joined.as_ref().zip(outlook.vision.as_ref());
        let is_llava = config.format == Format::LlavaHf;
        let trouble = towers.filter(|_| is_llava).and_then(|(joined, vision)| llava::unfit(joined, &vision.config));
        Forecast { outlook, trouble, ..Forecast::default() }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let (model, tokenizer) = load(job)?;
        let mut manner = Manner::of(job, &model, tokenizer)?;
        let (encoding, largest, out) = (config.dtype.encoding(), config.max_shard_size.0, job.output());
        let written = match config.format {
            Format::Imp => {
                save::merged(&model, encoding, largest, &out).and_then(|()| save::name_code(&config.auto_map, &out))
            }
            Format::LlavaHf => llava::write(&model, &image_tokens(manner.as_mut())?, encoding, largest, &out),
        };
        written.map_err(|error| model_error(job, &error))?;
        match &manner {
            Some(manner) => {
                manner.write(job, &model)?;
                if let Some(ratio) = aspect_ratio(&model.config).ok().filter(|ratio| *ratio != AspectRatio::Square) {
                    job.caution(format!(
                        "the model was trained on images that were made square by `{}`; preprocessor_config.json can't say that: \
                         other programs stretch an image, so make it square before",
                        ratio.name()
                    ));
                }
            }
            None => job.caution(
                "no chat template, tokenizer settings and generation settings are written: the model has no tokenizer, or no template \
                 is known for it",
            ),
        }
        let replaced: &[&str] = if manner.is_some() { &REPLACED } else { &[] };
        link_others_but(job, &tokenizer_folder(tokenizer), "", replaced)
    }
}

/// Whether transformers finds a class by this text: in a module of a repository.
fn is_code(text: &str) -> bool {
    let is_name = |name: &str| {
        let known = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') && name.chars().all(known)
    };
    let is_identifier = |name: &str| is_name(name) && !name.contains(['.', '-']);
    let parts = text.split_once("--").and_then(|(repository, class)| {
        let (owner, name) = repository.split_once('/')?;
        let (module, class) = class.split_once('.')?;
        Some(is_name(owner) && is_name(name) && is_identifier(module) && is_identifier(class))
    });
    parts.unwrap_or(false)
}

/// The model, and the folder that has its tokenizer.
fn load(job: &Job) -> Result<(Imp, &Path), StageError> {
    let from = job.input("model")?;
    let failed = |error| model_error(job, &error);
    let (Some(llm), Some(vision)) = (job.optional_input("llm"), job.optional_input("vision")) else {
        remark(job, from);
        return Ok((Imp::load(from).map_err(failed)?, from));
    };
    for folder in [from, llm, vision] {
        remark(job, folder);
    }
    let Some(projector) = projector_in(from).map_err(failed)? else {
        return Err(StageError::input(
            job.named(from),
            "it has no projector (`mm_projector.bin`, `non_lora_trainables.bin`, or the same in safetensors)",
            "give the folder that the script wrote at its end, or leave out `llm` and `vision` if this is a whole model",
        ));
    };
    let adapter = from.join("adapter_config.json").is_file().then_some(from);
    let components = Components { llm, vision, projector: &projector, adapter };
    let config = ConfigFile::read(from).and_then(|file| file.imp()).map_err(failed)?;
    let model = Imp::from_components(&components, config).map_err(failed)?;
    Ok((model, if TextTokenizer::is_in(from) { from } else { llm }))
}

/// The tokens of the Llava layout, with one for image features.
fn image_tokens(manner: Option<&mut Manner>) -> Result<Tokens, StageError> {
    let tokens = manner.and_then(|manner| {
        manner.add_image_token();
        manner.tokens()
    });
    tokens.ok_or_else(|| {
        StageError::failed(
            "a model in the format `llava-hf` needs a tokenizer and a conversation template, and this one has none",
            "give a model that was finetuned on conversations, or choose `format = \"imp\"`",
        )
    })
}
