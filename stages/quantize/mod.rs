//! The kind `quantize`: writes a model with fewer bits per weight, for imp-flow, llama.cpp or MLC. Independent of the formats'
//! arithmetic.

mod calibration;

use calibration::Calibration;
use imp_model::{
    Imp,
    config::Family,
    gguf::{self, Mixture},
    layers::Importance,
    mlc, quant, save, weights,
};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::{Better, Figure},
        forecast::{Ahead, Forecast},
        input::Input,
        keys::{Key, Keys, keys},
        stage::ConfigIssue,
    },
    hub_files::{MLC_CHAT, Manner, REPLACED, TOKENIZER_FILES},
    image::pixels::AspectRatio,
    model_folder::{link_others, link_others_but, model_error, remark, tokenizer_folder},
    speaker::aspect_ratio,
};

/// The kind `quantize`.
pub struct Quantize;

/// Who reads the files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// imp-flow: a folder like that of `merge`.
    #[default]
    Imp,
    /// llama.cpp and the programs around it: `model.gguf` and `mmproj.gguf`.
    Gguf,
    /// mlc-imp: shards of parameters, and `mlc-chat-config.json`.
    Mlc,
}

/// The encoding of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// MLC's: groups of 32 weights with one f16 scale, 4.5 bits per weight.
    #[serde(rename = "q4f16_1")]
    Q4f16,
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// llama.cpp's 8.5 bits per weight.
    Q8_0,
    /// llama.cpp's 6.6 bits per weight.
    Q6K,
    /// llama.cpp's mixture of about 4.8 bits per weight.
    Q4KM,
    /// llama.cpp's 4.5 bits per weight, with an output layer of 6.6.
    Q4_0,
}

impl Scheme {
    /// The mixture in a GGUF file; `None` for the scheme of the other format.
    fn mixture(self) -> Option<Mixture> {
        match self {
            Self::Q4f16 => None,
            Self::F32 => Some(Mixture::F32),
            Self::F16 => Some(Mixture::F16),
            Self::Q8_0 => Some(Mixture::Q8_0),
            Self::Q6K => Some(Mixture::Q6K),
            Self::Q4KM => Some(Mixture::Q4KM),
            Self::Q4_0 => Some(Mixture::Q4_0),
        }
    }
}

keys! {
    /// The keys of `quantize`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Who reads the files. `imp` is a folder like that of `merge`, in 4 bits. `gguf` is `model.gguf` and `mmproj.gguf` for
        /// llama.cpp and the programs around it. `mlc` is MLC's container of shards for mlc-imp. imp-flow reads all of them.
        pub format: Format,
        /// Encoding of the weights. `q4f16_1` (the default of `imp`, and the only one of `mlc`) is MLC's: groups of 32 weights of 4 bits with one f16 scale.
        /// `q4_k_m` (the default of `gguf`), `q4_0`, `q6_k`, `q8_0`, `f16` and `f32` are llama.cpp's.
        pub scheme: Option<Scheme>,
        /// Records of `calibration` that the model reads before it is quantized, to see which weights matter; 0 only measures the
        /// perplexity, on up to 32 others.
        pub calibration_records: usize,
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { format: Format::default(), scheme: None, calibration_records: 64 }
    }
}

impl Config {
    fn scheme(&self) -> Scheme {
        self.scheme.unwrap_or(match self.format {
            Format::Imp | Format::Mlc => Scheme::Q4f16,
            Format::Gguf => Scheme::Q4KM,
        })
    }
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const VERSION: u32 = 9;
    const ABOUT: &'static str = "writes a model with fewer bits per weight, for imp-flow, llama.cpp or MLC";
    const INPUTS: &'static [Input] = &[
        Input::required("model", "a merged model, from `merge`"),
        Input::optional(
            "calibration",
            "records of a kind that the model is for, from `preprocess`: it is rounded so that they lose least",
        ),
    ];
    const FIGURES: &'static [Figure] = &[
        Figure::headline("megabytes", Better::Lower, "MB"),
        // On records of `calibration` with which it was not calibrated.
        Figure::headline("perplexity", Better::Lower, ""),
        Figure::detail("unquantized_perplexity", Better::Lower, ""),
        Figure::detail("calibration_records", Better::Neither, ""),
        Figure::detail("bits_per_weight", Better::Lower, "bits"),
        // Of MLC's shards.
        Figure::detail("vision_megabytes", Better::Lower, "MB"),
        Figure::detail("projector_megabytes", Better::Lower, "MB"),
        Figure::detail("language_megabytes", Better::Lower, "MB"),
        Figure::detail("head_megabytes", Better::Lower, "MB"),
        // Without the vision tower, which is not quantized in GGUF files.
        Figure::detail("language_bits_per_weight", Better::Lower, "bits"),
    ];
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        let is_gguf = config.format == Format::Gguf;
        match (is_gguf, config.scheme().mixture().is_some()) {
            (true, false) => {
                Err(ConfigIssue::new("scheme", "of a GGUF file must be q4_k_m, q4_0, q6_k, q8_0, f16 or f32"))
            }
            (false, true) => {
                Err(ConfigIssue::new("scheme", "is of GGUF files: choose `format = \"gguf\"`, or q4f16_1"))
            }
            _ => Ok(()),
        }
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let trouble = ahead.input("model").and_then(|model| {
            let (joined, llm, vision) = (model.joined.as_ref()?, model.llm.as_ref()?, model.vision.as_ref()?);
            match config.format {
                Format::Imp => None,
                Format::Gguf => gguf::unfit(joined, &llm.config, &vision.config),
                Format::Mlc => mlc::unfit(joined, &llm.config, &vision.config),
            }
        });
        Forecast { trouble, ..Forecast::default() }
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        if config.calibration_records != Config::default().calibration_records && count("calibration") == 0 {
            return Err(ConfigIssue::new(
                "calibration_records",
                "needs `calibration`, the stage that prepares records",
            ));
        }
        Ok(())
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let from = job.input("model")?;
        remark(job, from);
        let mut calibration = Calibration::open(job, config.calibration_records)?;
        let importance = match &mut calibration {
            Some(calibration) => calibration.observe(&unquantized(job)?)?,
            None => Importance::default(),
        };
        let (bytes, weights) = match config.scheme().mixture() {
            Some(mixture) => write_gguf(job, mixture, &importance)?,
            None if config.format == Format::Mlc => write_mlc(job, &importance)?,
            None => {
                let written =
                    quant::write(from, &importance, &job.output()).map_err(|error| model_error(job, &error))?;
                link_others(job, from, "")?;
                (written.bytes, written.weights)
            }
        };
        if let Some(calibration) = &mut calibration {
            calibration.measure()?;
        }
        job.result("megabytes", bytes as f64 / 1e6);
        job.result("bits_per_weight", bytes as f64 * 8.0 / weights as f64);
        Ok(())
    }
}

/// Loads a model that was not quantized.
fn unquantized(job: &Job) -> Result<Imp, StageError> {
    let from = job.input("model")?;
    quant::check_not_quantized(from).map_err(|error| model_error(job, &error))?;
    Imp::load(from).map_err(|error| model_error(job, &error))
}

/// Loads a model that was not quantized, and how it talks, which its file in the format `called` says.
/// `rounds`: its weights lose digits.
fn load(job: &Job, called: &str, rounds: bool) -> Result<(Imp, Manner), StageError> {
    let (model, from) = (unquantized(job)?, job.input("model")?);
    if rounds && model.llm.config.family == Family::Phi && quant::is_llava(from) {
        return Err(StageError::input(
            from.join("config.json"),
            "transformers' Llava layout has the bias of a Phi's output layer in one column of its weights, beside which few bits leave \
             nothing of the others",
            "quantize the merge with `format = \"imp\"`",
        ));
    }
    let manner = Manner::of(job, &model, from)?.ok_or_else(|| {
        StageError::failed(
            format!("{called} holds the tokenizer and the conversation template of its model, and this one has none"),
            "give a model that was finetuned on conversations",
        )
    })?;
    let trained = model.config.tokenizer_model_max_length;
    if let Some(window) = model.llm.config.sliding_window.filter(|window| *window < trained) {
        job.caution(format!(
            "each position of this model sees the {window} before it, and who reads {called} has it see all: what is longer is answered in \
             another way than in `eval`"
        ));
    }
    Ok((model, manner))
}

/// Writes MLC's shards and `mlc-chat-config.json`, and beside them what imp-flow needs to read them. Returns bytes and number of weights.
fn write_mlc(job: &Job, importance: &Importance) -> Result<(u64, u64), StageError> {
    let (model, mut manner) = load(job, "a folder of MLC's", true)?;
    manner.add_image_token();
    let out = job.output();
    let written = mlc::write(&model, importance, &out).map_err(|error| model_error(job, &error))?;
    for (name, bytes) in [
        ("vision_megabytes", written.vision),
        ("projector_megabytes", written.projector),
        ("language_megabytes", written.language),
        ("head_megabytes", written.head),
    ] {
        job.result(name, bytes as f64 / 1e6);
    }
    if !manner.is_of_mlc_imp(&model) {
        job.caution(
            "no program is known that runs these shards but imp-flow: mlc-imp runs an Imp of Phi-2 with its tokenizer and SigLIP's so400m \
             on images of 196 pixels, and mlc-llm has no Imp. Names are those that a port would have",
        );
    }
    manner.write(job, &model)?;
    link_others_but(job, &tokenizer_folder(job.input("model")?), "", &REPLACED)?;
    let files: Vec<&str> = TOKENIZER_FILES.into_iter().filter(|name| out.join(name).is_file()).collect();
    let chat = manner.mlc_chat(&model, &files);
    weights::write_json(&out.join(MLC_CHAT), &chat).map_err(|error| model_error(job, &error))?;
    Ok((written.bytes(), written.weights))
}

/// Writes the two GGUF files, and beside them what imp-flow needs to read them. Returns bytes and number of weights.
fn write_gguf(job: &Job, mixture: Mixture, importance: &Importance) -> Result<(u64, u64), StageError> {
    let (model, manner) = load(job, "a GGUF file", mixture.rounds())?;
    let written = manner.speech(&model, |speech| {
        gguf::write(&model, speech, mixture, importance, &job.output()).map_err(|error| model_error(job, &error))
    })?;
    job.result("language_bits_per_weight", written.model as f64 * 8.0 / written.weights as f64);
    if written.replaced > 0 {
        job.caution(format!(
            "{} of {} matrices of the language model have rows that the blocks of the scheme don't divide: they are in an encoding with \
             more bits, as in llama.cpp",
            written.replaced, written.matrices
        ));
    }
    if let Some(ratio) = aspect_ratio(&model.config).ok().filter(|ratio| *ratio != AspectRatio::Pad) {
        job.caution(format!(
            "llama.cpp pads images to a square, and this model was trained on images that were {}: give it square images",
            if ratio == AspectRatio::Crop { "cropped" } else { "stretched" }
        ));
    }
    let dtype = if mixture == Mixture::F32 { "float32" } else { "float16" };
    save::config(&model, dtype, &job.output()).map_err(|error| model_error(job, &error))?;
    manner.write(job, &model)?;
    link_others_but(job, &tokenizer_folder(job.input("model")?), "", &REPLACED)?;
    Ok((written.model + written.mmproj, save::weights(&model)))
}
