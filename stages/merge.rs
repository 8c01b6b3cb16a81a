//! Adapters go into the weights, and all parts into one Hugging Face folder.

use imp_model::{
    Imp,
    save::{self, DType},
};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    finetune::tokenizer_folder,
    stage::Input,
    training::{link_others, model_error},
};

/// The kind `merge`.
pub struct Merge;

/// Its keys.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `f16` (as the published checkpoints) or `f32`.
    pub dtype: DType,
}

impl Stage for Merge {
    const KIND: &'static str = "merge";
    const VERSION: u32 = 2;
    const ABOUT: &'static str = "puts adapters into the weights and all parts into one folder";
    const INPUTS: &'static [Input] = &[Input { name: "model", required: true, about: "a finetuned model" }];
    type Config = Config;

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let from = job.input("model")?;
        let model = Imp::load(from).map_err(|error| model_error(job, &error))?;
        save::merged(&model, config.dtype, &job.output()).map_err(|error| model_error(job, &error))?;
        link_others(job, &tokenizer_folder(from), "")
    }
}
