//! The kind `pretrain`, stage 1 of LLaVA-1.5's recipe: a new projector learns from captions; language model and encoder
//! are frozen. Independent of the training loop.

use imp_model::{
    Imp, Precision,
    config::{ImpConfig, ProjectorType},
    memory::Trains,
    schedule::Schedule,
};

use crate::{
    Job, Stage, StageError,
    contract::{
        figure::Figure,
        forecast::{Ahead, Forecast, Outlook},
        input::Input,
        keys::{Key, Keys},
        stage::ConfigIssue,
    },
    image::size::{check_image_size, resize},
    model_folder::{model_error, remark, write_parts},
    place::places,
    training::{self, Inputs, keys::training_config},
};

/// The kind `pretrain`.
pub struct Pretrain;

training_config! {
    pretrain {
        /// The projector between encoder and language model: `linear`, or `mlp{N}x_gelu` for N layers.
        pub mm_projector_type: String = "mlp2x_gelu".into(),
        /// The hidden state of the encoder that the projector reads, counted from the last: -1 is the last, -2 the one before.
        pub mm_vision_select_layer: i64 = -2,
        /// Width and height of images in pixels from here on, if not the encoder's own: its learned positions are resized.
        #[serde(skip_serializing_if = "Option::is_none")]
        pub image_size: Option<usize> = None,
    }
}

impl Config {
    fn projector(&self) -> Result<ProjectorType, ConfigIssue> {
        self.mm_projector_type.parse().map_err(|message: String| ConfigIssue::new("mm_projector_type", message))
    }
}

impl Stage for Pretrain {
    const KIND: &'static str = "pretrain";
    const VERSION: u32 = 14;
    const ABOUT: &'static str = "trains a new projector between a frozen encoder and a frozen language model";
    const INPUTS: &'static [Input] = &[
        Input::required("llm", "a language model (Hugging Face folder)"),
        Input::required("vision", "a vision encoder: SigLIP, CLIP or DINOv2 (Hugging Face folder)"),
        Input::required_list("data", "training records, from `preprocess`"),
        Input::optional("validation", "held-out records for `eval_steps`, from `preprocess`"),
    ];
    const FIGURES: &'static [Figure] = training::FIGURES;
    const FOREIGN_KEYS: &'static [(&'static str, &'static str)] = training::FOREIGN_KEYS;
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        config.shared_recipe().check()?;
        config.projector()?;
        if config.mm_vision_select_layer >= 0 {
            return Err(ConfigIssue::new(
                "mm_vision_select_layer",
                "counts from the end: -1 is the last layer, -2 the usual one",
            ));
        }
        check_image_size(config.image_size)
    }

    fn check_inputs(config: &Config, count: &dyn Fn(&str) -> usize) -> Result<(), ConfigIssue> {
        config.shared_recipe().check_inputs(count)
    }

    fn uses_gpu(_config: &Config, _count: &dyn Fn(&str) -> usize) -> bool {
        true
    }

    fn uses_all_gpus() -> bool {
        true
    }

    fn forecast(config: &Config, ahead: &Ahead<'_>) -> Forecast {
        let Ok(projector) = config.projector() else { return Forecast::default() };
        let joined = ImpConfig {
            mm_projector_type: projector,
            mm_vision_select_layer: config.mm_vision_select_layer,
            tokenizer_model_max_length: config.max_length,
            conversation_template: training::conversation_template(ahead),
            ..ImpConfig::default()
        };
        let vision = ahead.input("vision").and_then(|input| input.vision.clone());
        let outlook = Outlook {
            llm: ahead.input("llm").and_then(|input| input.llm.clone()),
            vision: vision.map(|vision| vision.resized(config.image_size, config.mm_vision_select_layer)),
            joined: Some(joined),
            ..Outlook::default()
        };
        let training = training::forecast(&config.shared_recipe(), Trains::Projector, &outlook, ahead);
        Forecast { outlook, ..training }
    }

    fn run(config: &Config, job: &Job) -> Result<(), StageError> {
        let places = places(job, config.precision)?;
        let (llm, vision) = (job.input("llm")?, job.input("vision")?);
        let projector =
            config.projector().map_err(|issue| StageError::failed(issue.message, "see `mm_projector_type`"))?;
        let inputs = Inputs::open(job, &config.data_weights, llm)?;
        let mut joined = ImpConfig {
            mm_projector_type: projector,
            mm_vision_select_layer: config.mm_vision_select_layer,
            image_aspect_ratio: inputs.data.aspect_ratio().into(),
            tokenizer_model_max_length: config.max_length,
            ..ImpConfig::default()
        };
        inputs.note(&mut joined, job)?;
        for folder in [llm, vision] {
            remark(job, folder);
        }
        let assembled = Imp::assemble(llm, vision, joined, job.seed());
        let mut model = assembled.map_err(|error| model_error(job, &error))?;
        let resized = resize(&mut model.vision, config.image_size)?;
        model.projector.unfreeze();
        let Inputs { data, validation, .. } = &inputs;
        training::train(
            &mut model,
            &places,
            Trains::Projector,
            &config.shared_recipe(),
            data,
            validation.as_ref(),
            job,
        )?;
        write_parts(job, &model, Some(llm), Some(vision).filter(|_| !resized), llm)
    }
}
