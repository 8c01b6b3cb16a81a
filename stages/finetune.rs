//! The kind `finetune`, stage 2 of LLaVA-1.5's recipe with Imp's changes: the projector and the language model are trained,
//! the latter either through LoRA adapters on every linear layer or in full. Independent of the training loop.

use imp_model::{
    Imp, Precision, layers::LoraSettings, memory::Trains, peft, schedule::Schedule, vision::check_trained,
};
use serde::{Deserialize, Serialize};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast},
        input::Input,
        keys::{Key, Keys, keys, with_table},
        stage::ConfigIssue,
    },
    model_folder::{model_error, remark, tokenizer_folder, write_parts},
    place::places,
    training::{self, Inputs, Recipe, keys::training_config},
};

/// The kind `finetune`.
pub struct Finetune;

/// What trains beside the projector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Low-rank adapters. `custom`, Imp's name for adapting a merged Imp to a user's own data, is the same.
    #[default]
    #[serde(alias = "custom")]
    Lora,
    /// All weights of the language model.
    Full,
}

keys! {
    /// `[stages.NAME.lora]`.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub struct LoraConfig {
        /// Width of the bottleneck.
        pub rank: usize = 256,
        /// Adapters are scaled by `alpha / rank`, with `rslora` by `alpha / sqrt(rank)`.
        pub alpha: f64 = 256.0,
        /// The fraction of an adapter's inputs that is dropped.
        pub dropout: f64 = 0.05,
        /// The linear layers that get an adapter (`q_proj`, `lm_head`, ...). An empty list means all, as in Imp.
        pub targets: Vec<String> = Vec::new(),
        /// Rank-stabilized LoRA, peft's `use_rslora`: the scale falls with the root of the rank only.
        #[serde(skip_serializing_if = "is_false")]
        pub rslora: bool = false,
        /// Weight-decomposed LoRA, peft's `use_dora`: each row of an adapted weight has a norm that trains, too.
        #[serde(skip_serializing_if = "is_false")]
        pub dora: bool = false,
        /// LoRA+: the learning rate of the matrices B (with DoRA of the magnitudes, too) is `learning_rate` times this. Without it
        /// all have `learning_rate`.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub loraplus_lr_ratio: Option<f64> = None,
    }
}

impl LoraConfig {
    fn settings(&self) -> LoraSettings {
        let Self { rank, alpha, dropout, rslora, dora, .. } = *self;
        LoraSettings { rank, alpha, dropout, rslora, dora }
    }

    fn check(&self) -> Result<(), ConfigIssue> {
        if self.rank == 0 {
            return Err(ConfigIssue::new("lora.rank", "must be at least 1"));
        }
        if self.rank > MOST_RANK {
            return Err(ConfigIssue::new("lora.rank", format!("must be at most {MOST_RANK}, and is {}", self.rank)));
        }
        if !self.alpha.is_finite() {
            return Err(ConfigIssue::new("lora.alpha", "must be a finite number"));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let message = format!("must be at least 0 and less than 1, and is {}", self.dropout);
            return Err(ConfigIssue::new("lora.dropout", message));
        }
        if let Some(ratio) = self.loraplus_lr_ratio.filter(|ratio| !(*ratio > 0.0 && *ratio <= 10_000.0)) {
            let message = format!("must be greater than 0 and at most 10000, and is {ratio}");
            return Err(ConfigIssue::new("lora.loraplus_lr_ratio", message));
        }
        Ok(())
    }
}

/// So that keys of stages that don't set such a key are those of older versions.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The largest rank of adapters: above the width of all supported models, where adapters would have more weights than what
/// they adapt.
const MOST_RANK: usize = 8192;
/// The most blocks of an encoder that train: far above the number that any has, and small enough to compute with.
const MOST_LAYERS: usize = 1024;

training_config! {
    finetune {
        /// What trains beside the projector: adapters (`lora`; Imp's `custom` is the same) or all weights of the language
        /// model (`full`).
        pub mode: Mode = Mode::Lora,
        /// The adapters, if `mode` is `lora`.
        pub lora: LoraConfig = LoraConfig::default(),
        /// The projector's learning rate at its peak, if not `learning_rate`.
        pub projector_learning_rate: Option<f64> = None,
        /// The last blocks of the vision encoder that train, counted back from the one that gives the features. 0 leaves the encoder
        /// as it is.
        #[serde(skip_serializing_if = "is_zero")]
        pub vision_layers: usize = 0,
        /// Their learning rate at its peak, needed with `vision_layers`. LLaVA-OneVision's is a fifth of the language model's, which
        /// trains in full.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub vision_learning_rate: Option<f64> = None,
        /// NEFTune: in training, uniform noise within this, divided by the root of (length of the sequence times width), is added
        /// to embedded tokens, not to images. 5 is usual; none if it is not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub neftune_noise_alpha: Option<f64> = None,
    }
}

impl Config {
    pub(crate) fn recipe(&self) -> Recipe {
        Recipe {
            projector_learning_rate: self.projector_learning_rate,
            loraplus_lr_ratio: self.lora.loraplus_lr_ratio.unwrap_or(1.0),
            neftune_noise_alpha: self.neftune_noise_alpha.unwrap_or(0.0),
            vision_layers: self.vision_layers,
            vision_learning_rate: self.vision_learning_rate,
            ..self.shared_recipe()
        }
    }

    /// What trains besides the projector.
    fn trains(&self) -> Trains<'_> {
        let LoraConfig { rank, dropout, dora, ref targets, .. } = self.lora;
        match self.mode {
            Mode::Lora => Trains::Adapters { rank, dropout: dropout > 0.0, dora, targets },
            Mode::Full => Trains::All,
        }
    }
}

impl Stage for Finetune {
    const KIND: &'static str = "finetune";
    const VERSION: u32 = 15;
    const ABOUT: &'static str = "trains the projector and the language model, through LoRA or in full";
    const INPUTS: &'static [Input] = &[
        Input::required("model", "a model, from `pretrain`, `finetune` or `merge`"),
        Input::required_list("data", "training records, from `preprocess`"),
        Input::optional("validation", "held-out records for `eval_steps`, from `preprocess`"),
    ];
    const FIGURES: &'static [Figure] = training::FIGURES;
    const FOREIGN_KEYS: &'static [(&'static str, &'static str)] = training::FOREIGN_KEYS;
    type Config = Config;

    fn keys() -> Vec<Key> {
        let none = serde_json::json!({});
        with_table(Config::keys(&none), "lora", LoraConfig::keys(&none))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        config.recipe().check()?;
        config.lora.check()?;
        match (config.vision_layers, config.vision_learning_rate) {
            (1.., None) => {
                let message = "is needed with `vision_layers`: the encoder was trained for long, and learns slowly if it is not to \
                               forget; LLaVA-OneVision has 2e-6 beside 1e-5 for the language model";
                return Err(ConfigIssue::new("vision_learning_rate", message));
            }
            (0, Some(_)) => {
                let message =
                    "is for the vision encoder, of which nothing trains: set `vision_layers`, too, or remove it";
                return Err(ConfigIssue::new("vision_learning_rate", message));
            }
            _ => {}
        }
        if config.vision_layers > MOST_LAYERS {
            let message = format!("must be at most {MOST_LAYERS}, and is {}", config.vision_layers);
            return Err(ConfigIssue::new("vision_layers", message));
        }
        let LoraConfig { rslora, dora, loraplus_lr_ratio, .. } = &config.lora;
        let ways =
            [("lora.rslora", *rslora), ("lora.dora", *dora), ("lora.loraplus_lr_ratio", loraplus_lr_ratio.is_some())];
        match ways.into_iter().find(|(_, is_set)| *is_set && config.mode == Mode::Full) {
            Some((key, _)) => {
                Err(ConfigIssue::new(key, "is for adapters, and `mode = \"full\"` trains none: remove it"))
            }
            None => Ok(()),
        }
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        config.recipe().check_inputs(count)
    }

    fn uses_gpu(_config: &Config, _count: &dyn Fn(&str) -> usize) -> bool {
        true
    }

    fn uses_all_gpus() -> bool {
        true
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let Some(model) = ahead.input("model") else { return Forecast::default() };
        let mut outlook = model.clone();
        if let Some(joined) = &mut outlook.joined {
            joined.tokenizer_model_max_length = config.max_length;
            let taught = training::conversation_template(ahead);
            joined.conversation_template = taught.or(joined.conversation_template.take());
        }
        let training = training::forecast(&config.recipe(), config.trains(), &outlook, ahead);
        if let Some(llm) = outlook.llm.as_mut().filter(|_| outlook.adapted || config.mode == Mode::Full) {
            // Written in f32.
            llm.bytes = 4 * llm.config.parameters() as u64;
        }
        outlook.adapted = config.mode == Mode::Lora;
        let select_layer = outlook.joined.as_ref().map(|joined| joined.mm_vision_select_layer);
        let layers = outlook.vision.as_ref().zip(select_layer);
        let used = layers.and_then(|(vision, select_layer)| vision.config.used_layers(select_layer));
        let trouble = used.and_then(|used| check_trained(used, config.vision_layers).err());
        let trouble = trouble.map(|message| format!("vision_layers: {message}"));
        if let Some(select_layer) = select_layer.filter(|_| config.vision_layers > 0) {
            outlook.vision = outlook.vision.map(|vision| vision.rewritten(select_layer));
        }
        Forecast { outlook, trouble, ..training }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let places = places(job, config.precision)?;
        let from = job.input("model")?;
        let inputs = Inputs::open(job, &config.data_weights, &tokenizer_folder(from))?;
        // The parts of a split model were looked at when they were joined.
        remark(job, from);
        let mut model = Imp::load(from).map_err(|error| model_error(job, &error))?;
        model.config.tokenizer_model_max_length = config.max_length;
        let parts = from.join("llm").is_dir();
        let had_adapter = from.join("adapter").is_dir();
        // From here on images become square as in this stage's data.
        model.config.image_aspect_ratio = inputs.data.aspect_ratio().into();
        inputs.note(&mut model.config, job)?;
        model.llm.fold();

        let (settings, targets) = (config.lora.settings(), &config.lora.targets);
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
        model
            .vision
            .unfreeze(config.vision_layers)
            .map_err(|message| StageError::failed(format!("vision_layers: {message}"), "give at most as many"))?;
        let Inputs { data, validation, .. } = &inputs;
        training::train(&mut model, &places, config.trains(), &config.recipe(), data, validation.as_ref(), job)?;

        if config.mode == Mode::Lora {
            // The base lies beside the adapter; its own name is that of the input's only if it is not changed.
            let base = Some(from.join("llm")).filter(|_| parts && !had_adapter).and_then(|llm| peft::base_name(&llm));
            let base = base.unwrap_or_else(|| "../llm".into());
            peft::write(&model.llm, &settings, &base, &job.output().join("adapter"))
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
            Some(vision.as_path()).filter(|_| parts && config.vision_layers == 0),
            tokenizer,
        )
    }
}
