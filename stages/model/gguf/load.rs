//! The tensors of an Imp in two GGUF files, under the names of a merged folder: its weights stay in the files' encodings.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{
    MMPROJ, MODEL, check_heads, deinterleaved_row, interleaved_heads, names,
    reader::Gguf,
    rotary,
    setting::Setting,
    write::{language, projector},
};
use crate::{
    config::LanguageConfig,
    error::{ModelError, Result},
    imp::Imp,
    save::VISION_PREFIX,
    tensor::Bytes,
    weights::{Entry, Kind, TensorFiles, set_of},
};

/// Whether the weights of the model in `folder` are in GGUF files.
pub(crate) fn is_here(folder: &Path) -> bool {
    folder.join(MODEL).is_file()
}

/// Opens the weights of the model in `folder`, whose language model has this configuration.
///
/// # Errors
/// If a file is missing or not a complete GGUF file, or has a tensor whose name is not known.
pub(crate) fn open(folder: &Path, config: &LanguageConfig) -> Result<TensorFiles> {
    if let Some(other) = set_of(folder) {
        let message = format!("the folder has two sets of weights, `{MODEL}` and {other}: remove one");
        return Err(ModelError::file(&folder.join(MODEL), message));
    }
    let (model, mmproj) = (Gguf::open(&folder.join(MODEL))?, Gguf::open(&folder.join(MMPROJ))?);
    let mut all = HashMap::new();
    for gguf in [&model, &mmproj] {
        let file = Arc::new(gguf.path.clone());
        for tensor in gguf.tensors.iter().filter(|tensor| !rotary::has_divisors(tensor)) {
            let named = if file.ends_with(MODEL) {
                names::to_language(config.family, &tensor.name)
            } else {
                names::to_vision(VISION_PREFIX, &tensor.name).map(|name| (name, None))
            };
            let (name, part) =
                named.ok_or_else(|| ModelError::Extra { file: gguf.path.clone(), tensor: tensor.name.clone() })?;
            let mut bytes = gguf.shared(tensor);
            if let Some(heads) = interleaved_heads(config, part) {
                check_heads(gguf, tensor, heads)?;
                bytes = deinterleaved(&bytes, tensor.shape[0], heads);
            }
            let kind = Kind::Numbers(tensor.encoding);
            let entry = Entry { file: file.clone(), kind, shape: tensor.shape.clone(), bytes };
            if all.insert(name, entry).is_some() {
                return Err(ModelError::file(&gguf.path, format!("it has the tensor `{}` twice", tensor.name)));
            }
        }
    }
    Ok(TensorFiles::of_entries(folder.to_path_buf(), all))
}

/// Checks that the files describe the network that was read with the help of `config.json`: llama.cpp reads only them.
///
/// # Errors
/// Names a key that is missing, says otherwise, or may change the network and is not known.
pub(crate) fn check(folder: &Path, model: &Imp) -> Result<()> {
    let config = &model.llm.config;
    let (file, architecture) = (Gguf::open(&folder.join(MODEL))?, names::architecture(config.family));
    let trained = language::settings(config, model.config.tokenizer_model_max_length);
    // Earlier files have the context of the language model by itself.
    let before = language::settings(config, 0);
    rotary::check(&file, config)?;
    compare(&file, architecture, &trained).or_else(|error| compare(&file, architecture, &before).map_err(|_| error))?;
    compare(&Gguf::open(&folder.join(MMPROJ))?, "clip", &projector::settings(model))
}

fn compare(gguf: &Gguf, architecture: &str, settings: &[(String, Setting)]) -> Result<()> {
    if let Some((key, setting)) =
        settings.iter().find(|(key, setting)| !gguf.value(key).is_some_and(|value| setting.is(value)))
    {
        let message = format!("`{key}` is not {setting:?}, as config.json says: the two are not of one model");
        return Err(ModelError::file(&gguf.path, message));
    }
    let prefix = format!("{architecture}.");
    let is_known = |key: &str| !key.starts_with(&prefix) || settings.iter().any(|(known, _)| known == key);
    match gguf.keys().find(|key| !is_known(key)) {
        Some(key) => Err(ModelError::file(&gguf.path, format!("`{key}` is not supported beside a config.json"))),
        None => Ok(()),
    }
}

/// The rows of a q or k weight in their original order.
fn deinterleaved(bytes: &Bytes, rows: usize, heads: usize) -> Bytes {
    let row = bytes.get().len() / rows.max(1);
    let from = (0..rows).map(|index| deinterleaved_row(index, rows, heads));
    let copy: Vec<u8> = from.flat_map(|index| &bytes.get()[index * row..(index + 1) * row]).copied().collect();
    let length = copy.len();
    Bytes::new(Arc::new(copy), 0..length)
}
