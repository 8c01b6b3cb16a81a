//! The kind `quantize`: writes a model with fewer bits per weight, for imp-flow or for llama.cpp. Independent of the formats'
//! arithmetic.

use imp_model::{
    Imp,
    gguf::{self, Mixture},
    quant, save,
};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::{Better, Figure},
        input::Input,
        keys::{Key, Keys, keys},
        stage::ConfigIssue,
    },
    hub_files::{Manner, REPLACED},
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
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Who reads the files. `imp` is a folder like that of `merge`, in 4 bits. `gguf` is `model.gguf` and `mmproj.gguf` for
        /// llama.cpp and the programs around it; imp-flow reads them, too.
        pub format: Format,
        /// Encoding of the weights. `q4f16_1` (the default of `imp`) is MLC's: groups of 32 weights of 4 bits with one f16 scale.
        /// `q4_k_m` (the default of `gguf`), `q4_0`, `q6_k`, `q8_0`, `f16` and `f32` are llama.cpp's.
        pub scheme: Option<Scheme>,
    }
}

impl Config {
    fn scheme(&self) -> Scheme {
        self.scheme.unwrap_or(match self.format {
            Format::Imp => Scheme::Q4f16,
            Format::Gguf => Scheme::Q4KM,
        })
    }
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "writes a model with fewer bits per weight, for imp-flow or llama.cpp";
    const INPUTS: &'static [Input] = &[Input::required("model", "a merged model, from `merge`")];
    const FIGURES: &'static [Figure] = &[
        Figure::headline("megabytes", Better::Lower, "MB"),
        Figure::detail("bits_per_weight", Better::Lower, "bits"),
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
                Err(ConfigIssue::new("scheme", "is of GGUF files: add `format = \"gguf\"`, or choose q4f16_1"))
            }
            _ => Ok(()),
        }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let from = job.input("model")?;
        remark(job, from);
        let (bytes, weights) = if let Some(mixture) = config.scheme().mixture() {
            write_gguf(job, mixture)?
        } else {
            let written = quant::write(from, &job.output()).map_err(|error| model_error(job, &error))?;
            link_others(job, from, "")?;
            (written.bytes, written.weights)
        };
        job.result("megabytes", bytes as f64 / 1e6);
        job.result("bits_per_weight", bytes as f64 * 8.0 / weights as f64);
        Ok(())
    }
}

/// Writes the two GGUF files, and beside them what imp-flow needs to read them. Returns bytes and number of weights.
fn write_gguf(job: &Job, mixture: Mixture) -> Result<(u64, u64), StageError> {
    let from = job.input("model")?;
    quant::check_not_quantized(from).map_err(|error| model_error(job, &error))?;
    let model = Imp::load(from).map_err(|error| model_error(job, &error))?;
    let manner = Manner::of(job, &model, from)?.ok_or_else(|| {
        StageError::failed(
            "a GGUF file holds the tokenizer and the conversation template of its model, and this one has none",
            "give a model that was finetuned on conversations",
        )
    })?;
    let written = manner.speech(&model, |speech| {
        gguf::write(&model, speech, mixture, &job.output()).map_err(|error| model_error(job, &error))
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
    link_others_but(job, &tokenizer_folder(from), "", &REPLACED)?;
    Ok((written.model + written.mmproj, save::weights(&model)))
}
