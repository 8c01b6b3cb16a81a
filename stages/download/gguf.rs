//! Converts GGUF files to Hugging Face model folders. Independent of where the files come from.

use std::path::Path;

use imp_model::{ModelError, gguf};

use crate::{Job, StageError, contract::forecast::Outlook, model_folder};

/// Converts the language model in `file` to a Hugging Face folder. Errors call the file `name`.
pub(super) fn convert(job: &Job, file: &Path, name: &Path, folder: &Path) -> Result<(), StageError> {
    let unknown = gguf::convert(file, folder).map_err(|error| {
        let help = match error {
            ModelError::Overflow { .. } => {
                "weights of a GGUF file become f16, which can't hold this one: give the model as a folder of Hugging Face, \
                 whose weights keep their type"
            }
            _ => "give an intact GGUF file of a Llama model, with settings that are supported",
        };
        StageError::input(name, error.message(), help)
    })?;
    if !unknown.is_empty() {
        job.caution(format!(
            "{}: {} unknown setting(s) are not used: {}. If one of them changes the network, results will be wrong",
            name.display(),
            unknown.len(),
            unknown.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ")
        ));
    }
    Ok(())
}

pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Predicts the model that a file or folder of the user will become in the store.
pub(super) fn outlook_of(source: &Path) -> Outlook {
    if !is_gguf(source) {
        return model_folder::outlook(source);
    }
    let config = gguf::language_config(source).ok();
    let bytes = config.as_ref().map_or(0, |config| 2 * config.parameters() as u64);
    Outlook::of_language_model(config, bytes)
}
