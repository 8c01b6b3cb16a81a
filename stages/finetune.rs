//! Stage 2 of LLaVA-1.5's recipe, with Imp's changes: the projector learns on, and the language model with it,
//! either through LoRA adapters on every linear layer or in full.

use imp_model::{Imp, layers::LoraSettings, memory::Trains, peft, schedule::Schedule};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast},
        input::Input,
        stage::ConfigIssue,
    },
    model_folder::{model_error, write_parts},
    training::{self, Recipe, open_records, open_validation},
};

/// The kind `finetune`.
pub struct Finetune;

/// What trains besides the projector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Low-rank adapters. `custom`, Imp's word for adapting a merged Imp to a person's own data, is the same.
    #[default]
    #[serde(alias = "custom")]
    Lora,
    /// All weights of the language model.
    Full,
}

/// `[stages.NAME.lora]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Width of the bottleneck.
    pub rank: usize,
    /// Adapters are scaled by `alpha / rank`.
    pub alpha: f64,
    /// Share of an adapter's inputs that is dropped.
    pub dropout: f64,
    /// Names of the linear layers that get one (`q_proj`, `lm_head`, ...); all if none is named, as in Imp.
    pub targets: Vec<String>,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 256, alpha: 256.0, dropout: 0.05, targets: Vec::new() }
    }
}

/// Its keys, with Imp's values as defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `lora` or `full`.
    pub mode: Mode,
    /// The adapters, if `mode` is `lora`.
    pub lora: LoraConfig,
    /// The context: longer sequences are cut.
    pub max_length: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Ends earlier; 0 means not.
    pub max_steps: usize,
    /// Samples a step.
    pub global_batch_size: usize,
    /// Of the adapters or the language model, at its highest.
    pub learning_rate: f64,
    /// Of the projector; the same as `learning_rate` if not given.
    pub projector_learning_rate: Option<f64>,
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
            mode: Mode::Lora,
            lora: LoraConfig::default(),
            max_length: 3072,
            epochs: 2,
            max_steps: 0,
            global_batch_size: 128,
            learning_rate: 2e-4,
            projector_learning_rate: None,
            warmup_ratio: 0.03,
            warmup_steps: None,
            lr_scheduler: Schedule::Cosine,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            group_by_modality_length: true,
            eval_steps: 0,
            keep_best: false,
            data_weights: Vec::new(),
        }
    }
}

impl Config {
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe {
            epochs: self.epochs,
            max_steps: self.max_steps,
            global_batch_size: self.global_batch_size,
            learning_rate: self.learning_rate,
            projector_learning_rate: self.projector_learning_rate,
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

impl Stage for Finetune {
    const KIND: &'static str = "finetune";
    const VERSION: u32 = 6;
    const ABOUT: &'static str = "trains the projector and the language model, through LoRA or in full";
    const INPUTS: &'static [Input] = &[
        Input::required("model", "a model, from `pretrain`, `finetune` or `merge`"),
        Input::required_list("data", "training records, from `preprocess`"),
        Input::optional("validation", "held-out records for `eval_steps`, from `preprocess`"),
    ];
    const FIGURES: &'static [Figure] = training::FIGURES;
    type Config = Config;

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        config.recipe().check()?;
        training::check_max_length(config.max_length)?;
        if config.lora.rank == 0 {
            return Err(ConfigIssue::new("lora.rank", "must be at least 1"));
        }
        if !config.lora.alpha.is_finite() {
            return Err(ConfigIssue::new("lora.alpha", "must be a finite number"));
        }
        if !(0.0..1.0).contains(&config.lora.dropout) {
            return Err(ConfigIssue::new(
                "lora.dropout",
                format!("must be at least 0 and less than 1, and is {}", config.lora.dropout),
            ));
        }
        Ok(())
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        config.recipe().check_inputs(count)
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let Some(model) = ahead.input("model") else { return Forecast::default() };
        let mut outlook = model.clone();
        if let Some(joined) = &mut outlook.joined {
            joined.tokenizer_model_max_length = config.max_length;
        }
        let LoraConfig { rank, dropout, ref targets, .. } = config.lora;
        let trains = match config.mode {
            Mode::Lora => Trains::Adapters { rank, dropout: dropout > 0.0, targets },
            Mode::Full => Trains::All,
        };
        let training = training::forecast(&config.recipe(), trains, &outlook, ahead);
        if let Some(llm) = outlook.llm.as_mut().filter(|_| outlook.adapted || config.mode == Mode::Full) {
            // Written in f32.
            llm.bytes = 4 * llm.config.parameters() as u64;
        }
        outlook.adapted = config.mode == Mode::Lora;
        Forecast { outlook, ..training }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let from = job.input("model")?;
        let data = open_records(job, &config.data_weights)?;
        let mut model = Imp::load(from).map_err(|error| model_error(job, &error))?;
        model.config.tokenizer_model_max_length = config.max_length;
        let parts = from.join("llm").is_dir();
        let had_adapter = from.join("adapter").is_dir();
        // Images are shown as in this stage's data from here on.
        model.config.image_aspect_ratio = data.aspect_ratio().name().into();
        model.llm.fold();

        let LoraConfig { rank, alpha, dropout, ref targets } = config.lora;
        let settings = LoraSettings { rank, alpha, dropout };
        match config.mode {
            Mode::Full => model.llm.unfreeze(),
            Mode::Lora => model.llm.adapt(&settings, targets, job.seed()).map_err(|message| {
                StageError::failed(
                    format!("lora.targets: {message}"),
                    "name layers of this model, or leave `targets` out",
                )
            })?,
        }
        model.projector.unfreeze();
        let validation = open_validation(job)?;
        training::train(&mut model, &config.recipe(), &data, validation.as_ref(), job)?;

        if config.mode == Mode::Lora {
            peft::write(&model.llm, &settings, &job.output().join("adapter"))
                .map_err(|error| model_error(job, &error))?;
        }
        // The base is the input's own language model, unless it had an adapter that is now part of it.
        let unchanged = parts && config.mode == Mode::Lora && !had_adapter;
        let llm = from.join("llm");
        if config.mode == Mode::Lora && !unchanged {
            model.llm.drop_adapters();
        }
        let vision = from.join("vision");
        let tokenizer = if parts { llm.as_path() } else { from };
        write_parts(
            job,
            &model,
            Some(llm.as_path()).filter(|_| unchanged),
            Some(vision.as_path()).filter(|_| parts),
            tokenizer,
        )
    }
}
