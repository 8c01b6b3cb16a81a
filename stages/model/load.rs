//! Loads an Imp: from a merged folder, from the split folder of a training stage, or from its components.

use std::path::{Path, PathBuf};

use crate::{
    config::{ConfigFile, ImpConfig, ModelKind, SPLIT_IMP},
    error::{ModelError, Result},
    gguf,
    imp::Imp,
    language::Decoder,
    mlc, peft,
    projector::Projector,
    save::{TOWER_PREFIX, vision_prefix},
    vision::VisionTower,
    weights::{self, TensorFiles},
};

const PROJECTOR_PREFIX: &str = "model.mm_projector.";

/// The files that may hold a projector: ours, and those that LLaVA's and Imp's scripts leave.
const PROJECTORS: [&str; 4] =
    ["mm_projector.safetensors", "mm_projector.bin", "non_lora_trainables.safetensors", "non_lora_trainables.bin"];

/// The file with the projector in a folder, if there is one.
///
/// # Errors
/// If there are several.
pub fn projector_in(folder: &Path) -> Result<Option<PathBuf>> {
    weights::either(folder, &PROJECTORS)
}

/// The paths of a model's components.
#[derive(Clone, Copy, Debug)]
pub struct Components<'a> {
    /// The Hugging Face folder of a language model.
    pub llm: &'a Path,
    /// The Hugging Face folder of a vision encoder.
    pub vision: &'a Path,
    /// A file with the projector: LLaVA's `mm_projector` or `non_lora_trainables`, in safetensors or as `torch.save` writes it.
    pub projector: &'a Path,
    /// A folder with an adapter in peft's format.
    pub adapter: Option<&'a Path>,
}

impl Imp {
    /// Loads a model folder: a merged Imp, which may be quantized, also in GGUF files or MLC's shards beside its `config.json`, or the split
    /// layout that training stages write
    /// (`llm/`, `vision/`, `mm_projector.safetensors` and optionally `adapter/`).
    ///
    /// # Errors
    /// If `config.json` or the weights can't be read, do not match, or contain non-finite values.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = ConfigFile::read(folder)?;
        let config = file.imp()?;
        match file.kind() {
            ModelKind::Imp => return Self::load_merged(folder, &file, config),
            ModelKind::SplitImp => {}
            ModelKind::Vision | ModelKind::Unnamed | ModelKind::Other => {
                let found = file.model_type();
                let message = format!("model_type `{found}` is not an Imp's (`imp`, `imp_*` or `{SPLIT_IMP}`)");
                return Err(ModelError::file(&folder.join("config.json"), message));
            }
        }
        let adapter = folder.join("adapter");
        let projector = projector_in(folder)?;
        let components = Components {
            llm: &folder.join("llm"),
            vision: &folder.join("vision"),
            projector: &projector.unwrap_or_else(|| folder.join(PROJECTORS[0])),
            adapter: adapter.is_dir().then_some(adapter.as_path()),
        };
        Self::from_components(&components, config)
    }

    fn load_merged(folder: &Path, file: &ConfigFile, config: ImpConfig) -> Result<Self> {
        let language = file.language()?;
        let in_gguf = gguf::is_here(folder);
        let in_shards = mlc::is_here(folder);
        if in_gguf && in_shards {
            let message = format!("the folder has two sets of weights, `{}` and MLC's shards: remove one", gguf::MODEL);
            return Err(ModelError::file(folder, message));
        }
        let files = match (in_gguf, in_shards) {
            (true, _) => gguf::open(folder, &language)?,
            (_, true) => mlc::open(folder, &language)?,
            _ => TensorFiles::open(folder)?,
        };
        let llm = Decoder::load(&files, language)?;
        let tower = file.vision()?;
        let vision = VisionTower::load(&files, &vision_prefix(tower.encoder), tower, config.mm_vision_select_layer)?;
        let (from, to) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::load(&files, PROJECTOR_PREFIX, config.mm_projector_type, from, to)?;
        files.finish(|name| is_buffer(name) || name.starts_with(TOWER_PREFIX))?;
        let context = config.tokenizer_model_max_length;
        llm.config.check_context(context).map_err(|message| ModelError::file(&folder.join("config.json"), message))?;
        let model = Self { config, llm, vision, projector };
        if in_gguf {
            gguf::check(folder, &model)?;
        }
        Ok(model)
    }

    /// Loads a model from its components.
    ///
    /// # Errors
    /// If a component can't be read, does not match the others, or contains non-finite values.
    pub fn from_components(from: &Components<'_>, config: ImpConfig) -> Result<Self> {
        let (llm, vision) = (load_language(from.llm)?, load_vision(from.vision, &config)?);
        let files = TensorFiles::open_file(from.projector)?;
        let (inputs, outputs) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::load(&files, PROJECTOR_PREFIX, config.mm_projector_type, inputs, outputs)?;
        files.finish(|_| false)?;
        let context = config.tokenizer_model_max_length;
        llm.config
            .check_context(context)
            .map_err(|message| ModelError::file(&from.llm.join("config.json"), message))?;
        let mut model = Self { config, llm, vision, projector };
        if let Some(adapter) = from.adapter {
            peft::read(&mut model.llm, peft::base_name(from.llm).as_deref(), adapter)?;
        }
        Ok(model)
    }

    /// Joins a language model and a vision encoder, each a Hugging Face folder, by a new projector initialized with
    /// `seed`.
    ///
    /// # Errors
    /// If a folder can't be read, or the type of the projector does not fit the two widths.
    pub fn assemble(llm: &Path, vision: &Path, config: ImpConfig, seed: u64) -> Result<Self> {
        let (llm, vision) = (load_language(llm)?, load_vision(vision, &config)?);
        let (from, to) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::fresh(config.mm_projector_type, from, to, seed)?;
        Ok(Self { config, llm, vision, projector })
    }
}

/// Loads a language model from its Hugging Face folder.
///
/// # Errors
/// If `config.json` or the weights can't be read, do not match, or contain non-finite values.
pub fn load_language(folder: &Path) -> Result<Decoder> {
    let files = TensorFiles::open(folder)?;
    let llm = Decoder::load(&files, ConfigFile::read(folder)?.language()?)?;
    files.finish(is_buffer)?;
    Ok(llm)
}

/// Loads a vision encoder from its Hugging Face folder; a text encoder beside it is not read.
///
/// # Errors
/// If `config.json` or the weights can't be read, do not match, contain non-finite values, or do not have the selected
/// hidden state.
pub fn load_vision(folder: &Path, config: &ImpConfig) -> Result<VisionTower> {
    let (file, files) = (ConfigFile::read(folder)?, TensorFiles::open(folder)?);
    let tower = file.vision()?;
    let description = tower.encoder.description();
    // Since its version 5, transformers saves encoders without text encoder without their prefix. DINOv2 has one below a classifier.
    let below_classifier = format!("{}.", description.model_type);
    let is_there = |prefix: &&str| !prefix.is_empty() && files.names().any(|name| name.starts_with(prefix));
    let prefix = [description.prefix, &below_classifier].into_iter().find(is_there).unwrap_or_default();
    let vision = VisionTower::load(&files, prefix, tower, config.mm_vision_select_layer)?;
    // Layers after the features, the text encoder and a classifier are not used.
    files.finish(|name| {
        let own = name.strip_prefix(prefix).is_some_and(|name| {
            prefix == description.prefix && !prefix.is_empty()
                || description.unused.iter().any(|part| name.starts_with(part))
        });
        own || description.beside.iter().any(|part| name.starts_with(part))
    })?;
    Ok(vision)
}

/// Whether older versions of transformers saved this tensor although the configuration determines it.
fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".inner_attn.bias")
        || name.ends_with("embeddings.position_ids")
}
