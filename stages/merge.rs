//! The kind `merge`: adds adapters to the weights and writes the whole model as one Hugging Face folder.
//! Independent of how the model was trained.

use imp_model::{Imp, encoding::Encoding, save};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        forecast::{Ahead, Forecast},
        input::Input,
        keys::{Key, Keys, keys},
    },
    model_folder::{link_others, model_error, remark, tokenizer_folder},
};

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

keys! {
    /// The keys of `merge`.
    #[derive(Debug, Clone, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        /// Format of the weights; `f16` in the published models.
        pub dtype: DType,
    }
}

impl Stage for Merge {
    const KIND: &'static str = "merge";
    const VERSION: u32 = 3;
    const ABOUT: &'static str = "adds adapters to the weights and writes the whole model to one folder";
    const INPUTS: &'static [Input] = &[Input::required("model", "a finetuned model")];
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let mut outlook = ahead.input("model").cloned().unwrap_or_default();
        if let Some(llm) = &mut outlook.llm {
            llm.bytes = (config.dtype.encoding().block().bytes * llm.config.parameters()) as u64;
        }
        outlook.adapted = false;
        Forecast { outlook, ..Forecast::default() }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let from = job.input("model")?;
        remark(job, from);
        let model = Imp::load(from).map_err(|error| model_error(job, &error))?;
        save::merged(&model, config.dtype.encoding(), u64::MAX, &job.output())
            .map_err(|error| model_error(job, &error))?;
        link_others(job, &tokenizer_folder(from), "")
    }
}
