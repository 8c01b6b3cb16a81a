//! Stage 1 of LLaVA-1.5's recipe: a fresh projector learns from captions; language model and encoder stay frozen.

use imp_model::{Imp, config::ImpConfig, memory::Trains, projector, schedule::Schedule};

use crate::{
    Job, Stage, StageError,
    contract::{
        forecast::{Ahead, Forecast, Outlook},
        input::Input,
        keys::{Key, Keys},
        stage::ConfigIssue,
    },
    image::size::{check_image_size, resize},
    model_folder::{model_error, write_parts},
    training::{self, keys::training_config, open_records, open_validation},
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
    type Config = Config;

    fn keys() -> Vec<Key> {
        Config::keys(&serde_json::json!({}))
    }

    fn check(config: &Config) -> Result<(), ConfigIssue> {
        config.shared_recipe().check()?;
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
        config.shared_recipe().check_inputs(count)
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
        let training = training::forecast(&config.shared_recipe(), Trains::Projector, &outlook, ahead);
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
        training::train(&mut model, &config.shared_recipe(), &data, validation.as_ref(), job)?;
        write_parts(job, &model, Some(llm), Some(vision).filter(|_| !resized), llm)
    }
}
