//! The kind `quantize`: writes a merged model in 4 bits per weight. Independent of the format's arithmetic.

use imp_model::quant;
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::{Better, Figure},
        input::Input,
        keys::{Key, Keys, keys},
    },
    model_folder::{link_others, model_error, remark},
};

/// The kind `quantize`.
pub struct Quantize;

/// The quantized format.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// MLC's: groups of 32 weights with one f16 scale, 4.5 bits per weight.
    #[default]
    #[serde(rename = "q4f16_1")]
    Q4f16,
}

keys! {
    /// The keys of `quantize`.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Format of the weights. `q4f16_1` is MLC's: groups of 32 weights of 4 bits with one f16 scale.
        pub scheme: Scheme,
    }
}

impl Stage for Quantize {
    const KIND: &'static str = "quantize";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "writes a merged model in 4 bits per weight";
    const INPUTS: &'static [Input] = &[Input::required("model", "a merged model, from `merge`")];
    const FIGURES: &'static [Figure] =
        &[Figure::headline("megabytes", Better::Lower, "MB"), Figure::detail("bits_per_weight", Better::Lower, "bits")];
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let Scheme::Q4f16 = config.scheme;
        let from = job.input("model")?;
        remark(job, from);
        let written = quant::write(from, &job.output()).map_err(|error| model_error(job, &error))?;
        job.result("megabytes", written.bytes as f64 / 1e6);
        job.result("bits_per_weight", written.bytes as f64 * 8.0 / written.weights as f64);
        link_others(job, from, "")
    }
}
