//! Stage 1 of LLaVA-1.5's recipe: a fresh projector learns from captions; language model and encoder stay frozen.

use imp_model::{Imp, config::ImpConfig, memory::Trains, projector, schedule::Schedule};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast, Outlook},
        input::Input,
        stage::ConfigIssue,
    },
    image::size::{check_image_size, resize},
    model_folder::{model_error, write_parts},
    training::{self, Recipe, open_records, open_validation},
};

/// The kind `pretrain`.
pub struct Pretrain;

/// Its keys, with Imp's values as defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `mlp2x_gelu`, `mlp{N}x_gelu` or `linear`.
    pub mm_projector_type: String,
    /// Which hidden state of the encoder is used.
    pub mm_vision_select_layer: i64,
    /// Pixels in a row of the images from here on, if not the encoder's own: the positions that it learned are resized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// The context: longer sequences are cut.
    pub max_length: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Ends earlier; 0 means not.
    pub max_steps: usize,
    /// Samples a step.
    pub global_batch_size: usize,
    /// At its highest.
    pub learning_rate: f64,
    /// Share of the steps in which it rises.
    pub warmup_ratio: f64,
    /// Steps in which it rises, in place of a share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<usize>,
    /// How it goes down.
    pub lr_scheduler: Schedule,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of Adam's first moment.
    pub adam_beta1: f64,
    /// Decay of Adam's second moment.
    pub adam_beta2: f64,
    /// Added to Adam's denominator.
    pub adam_epsilon: f64,
    /// Gradients are clipped to this norm; 0 means never.
    pub max_grad_norm: f64,
    /// Batches of either images or text, with samples of like length.
    pub group_by_modality_length: bool,
    /// Steps between two looks at the loss on the input `validation`; 0 means never.
    pub eval_steps: usize,
    /// Give the weights with the smallest loss on `validation` instead of the last ones.
    pub keep_best: bool,
    /// How often each of `data` is seen in an epoch, if not once: 3 is three times, 0.5 half of its records, others in each
    /// epoch.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub data_weights: Vec<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mm_projector_type: "mlp2x_gelu".into(),
            mm_vision_select_layer: -2,
            image_size: None,
            max_length: 3072,
            epochs: 1,
            max_steps: 0,
            global_batch_size: 256,
            learning_rate: 1e-3,
            warmup_ratio: 0.03,
            warmup_steps: None,
            lr_scheduler: Schedule::Cosine,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            group_by_modality_length: false,
            eval_steps: 0,
            keep_best: false,
            data_weights: Vec::new(),
        }
    }
}

impl Config {
    fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs,
            max_steps: self.max_steps,
            global_batch_size: self.global_batch_size,
            learning_rate: self.learning_rate,
            projector_learning_rate: None,
            warmup_ratio: self.warmup_ratio,
            warmup_steps: self.warmup_steps,
            lr_scheduler: self.lr_scheduler,
            weight_decay: self.weight_decay,
            adam_beta1: self.adam_beta1,
            adam_beta2: self.adam_beta2,
            adam_epsilon: self.adam_epsilon,
            max_grad_norm: self.max_grad_norm,
            group_by_modality_length: self.group_by_modality_length,
            eval_steps: self.eval_steps,
            keep_best: self.keep_best,
            data_weights: self.data_weights.clone(),
        }
    }
}

impl Stage for Pretrain {
    const KIND: &'static str = "pretrain";
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "trains a fresh projector between a frozen encoder and a frozen language model";
    const INPUTS: &'static [Input] = &[
        Input::required("llm", "a language model (Hugging Face folder)"),
        Input::required("vision", "a SigLIP vision encoder (Hugging Face folder)"),
        Input::required_list("data", "training records, from `preprocess`"),
        Input::optional("validation", "held-out records for `eval_steps`, from `preprocess`"),
    ];
    const FIGURES: &'static [Figure] = training::FIGURES;
    type Config = Config;

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        config.recipe().check()?;
        training::check_max_length(config.max_length)?;
        projector::depth(&config.mm_projector_type)
            .map_err(|message| ConfigIssue::new("mm_projector_type", message))?;
        if config.mm_vision_select_layer >= 0 {
            return Err(ConfigIssue::new(
                "mm_vision_select_layer",
                "counts from the end: -1 is the last, -2 the usual",
            ));
        }
        check_image_size(config.image_size)
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        config.recipe().check_inputs(count)
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let joined = ImpConfig {
            mm_projector_type: config.mm_projector_type.clone(),
            mm_vision_select_layer: config.mm_vision_select_layer,
            tokenizer_model_max_length: config.max_length,
            ..ImpConfig::default()
        };
        let vision = ahead.input("vision").and_then(|input| input.vision.clone());
        let outlook = Outlook {
            llm: ahead.input("llm").and_then(|input| input.llm.clone()),
            vision: vision.map(|vision| vision.resized(config.image_size, config.mm_vision_select_layer)),
            joined: Some(joined),
            ..Outlook::default()
        };
        let training = training::forecast(&config.recipe(), Trains::Projector, &outlook, ahead);
        Forecast { outlook, ..training }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let (llm, vision) = (job.input("llm")?, job.input("vision")?);
        let data = open_records(job, &config.data_weights)?;
        let joined = ImpConfig {
            mm_projector_type: config.mm_projector_type.clone(),
            mm_vision_select_layer: config.mm_vision_select_layer,
            image_aspect_ratio: data.aspect_ratio().name().into(),
            tokenizer_model_max_length: config.max_length,
        };
        let mut model = Imp::assemble(llm, vision, joined, job.seed()).map_err(|error| model_error(job, &error))?;
        let resized = resize(&mut model.vision, config.image_size)?;
        model.projector.unfreeze();
        let validation = open_validation(job)?;
        training::train(&mut model, &config.recipe(), &data, validation.as_ref(), job)?;
        write_parts(job, &model, Some(llm), Some(vision).filter(|_| !resized), llm)
    }
}
