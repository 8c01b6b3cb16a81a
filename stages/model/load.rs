//! Loading an Imp: from one merged folder, from the folder of a training stage, or from its components.

use std::path::Path;

use crate::{
    config::{ConfigFile, ImpConfig},
    error::{ModelError, Result},
    imp::Imp,
    language::Decoder,
    peft,
    projector::Projector,
    save::VISION_PREFIX,
    vision::Siglip,
    weights::TensorFiles,
};

const PROJECTOR_PREFIX: &str = "model.mm_projector.";
const TOWER_PREFIX: &str = "vision_model.";

/// The files of a model whose components lie apart.
#[derive(Clone, Copy, Debug)]
pub struct Components<'a> {
    /// A Hugging Face folder of a language model.
    pub llm: &'a Path,
    /// One of a SigLIP.
    pub vision: &'a Path,
    /// A safetensors file with the projector: LLaVA's `mm_projector.safetensors` or `non_lora_trainables.safetensors`.
    pub projector: &'a Path,
    /// A folder with an adapter in peft's layout.
    pub adapter: Option<&'a Path>,
}

impl Imp {
    /// Loads a model folder: a merged Imp (also quantized), or the split layout that training stages write
    /// (`llm/`, `vision/`, `mm_projector.safetensors`, and `adapter/` if there is one).
    ///
    /// # Errors
    /// If `config.json` or the weights can't be read, do not fit together, or hold values that are not finite.
    pub fn load(folder: &Path) -> Result<Self> {
        let file = ConfigFile::read(folder)?;
        let config = file.imp()?;
        if file.is_imp() {
            return Self::load_merged(folder, &file, config);
        }
        if file.model_type() != "imp-split" {
            let message = format!("model_type `{}` is not an Imp's (`imp`, `imp_*` or `imp-split`)", file.model_type());
            return Err(ModelError::file(&folder.join("config.json"), message));
        }
        let adapter = folder.join("adapter");
        let components = Components {
            llm: &folder.join("llm"),
            vision: &folder.join("vision"),
            projector: &folder.join("mm_projector.safetensors"),
            adapter: adapter.is_dir().then_some(adapter.as_path()),
        };
        Self::from_components(&components, config)
    }

    fn load_merged(folder: &Path, file: &ConfigFile, config: ImpConfig) -> Result<Self> {
        let files = TensorFiles::open(folder)?;
        let llm = Decoder::load(&files, file.language()?)?;
        let vision = Siglip::load(&files, VISION_PREFIX, file.siglip()?, config.mm_vision_select_layer)?;
        let (from, to) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::load(&files, PROJECTOR_PREFIX, config.mm_projector_type, from, to)?;
        files.finish(|name| is_buffer(name) || name.starts_with(VISION_PREFIX))?;
        Ok(Self { config, llm, vision, projector })
    }

    /// Loads a model whose components lie apart.
    ///
    /// # Errors
    /// If a component can't be read, or does not fit the others.
    pub fn from_components(from: &Components<'_>, config: ImpConfig) -> Result<Self> {
        let (llm, vision) = (load_language(from.llm)?, load_vision(from.vision, &config)?);
        let files = TensorFiles::open_file(from.projector)?;
        let (inputs, outputs) = (vision.config.hidden_size, llm.config.hidden_size);
        let projector = Projector::load(&files, PROJECTOR_PREFIX, config.mm_projector_type, inputs, outputs)?;
        files.finish(|_| false)?;
        let mut model = Self { config, llm, vision, projector };
        if let Some(adapter) = from.adapter {
            peft::read(&mut model.llm, adapter)?;
        }
        Ok(model)
    }

    /// Starts from a language model and a vision encoder, each a Hugging Face folder, with a fresh projector.
    ///
    /// # Errors
    /// If a tower can't be read, or the projector can't join the two.
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
/// If `config.json` or the weights can't be read, or do not fit together.
pub fn load_language(folder: &Path) -> Result<Decoder> {
    let files = TensorFiles::open(folder)?;
    let llm = Decoder::load(&files, ConfigFile::read(folder)?.language()?)?;
    files.finish(is_buffer)?;
    Ok(llm)
}

/// Loads a vision encoder from the Hugging Face folder of a SigLIP, whose text tower is not read.
///
/// # Errors
/// If `config.json` or the weights can't be read, do not fit together, or have no such hidden state.
pub fn load_vision(folder: &Path, config: &ImpConfig) -> Result<Siglip> {
    let (file, files) = (ConfigFile::read(folder)?, TensorFiles::open(folder)?);
    let vision = Siglip::load(&files, TOWER_PREFIX, file.siglip()?, config.mm_vision_select_layer)?;
    // The last layers and the head lie behind the features.
    files.finish(|name| {
        [TOWER_PREFIX, "text_model.", "logit_scale", "logit_bias"].iter().any(|prefix| name.starts_with(prefix))
    })?;
    Ok(vision)
}

/// Tensors that older versions of transformers saved, although they follow from the configuration.
fn is_buffer(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with(".inner_attn.bias")
        || name.ends_with("embeddings.position_ids")
}
