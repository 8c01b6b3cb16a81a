//! Converts GGUF files to Hugging Face model folders. Independent of where the files come from.

use std::path::Path;

use imp_model::gguf;

use crate::{StageError, contract::forecast::Outlook, model_folder};

/// Converts the language model in `file` to a Hugging Face folder. Errors call the file `name`.
pub(super) fn convert(file: &Path, name: &Path, folder: &Path) -> Result<(), StageError> {
    gguf::convert(file, folder)
        .map_err(|error| StageError::input(name, error.message(), "give an intact GGUF file of a Llama model"))
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
