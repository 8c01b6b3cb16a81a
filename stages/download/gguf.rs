//! GGUF files, which become folders like any other model's.

use std::path::Path;

use imp_model::gguf;

use crate::{StageError, contract::forecast::Outlook, model_folder};

/// GGUF files hold one language model: from here on it is a folder like any other. A person knows the file as `name`.
pub(super) fn convert(file: &Path, name: &Path, folder: &Path) -> Result<(), StageError> {
    gguf::convert(file, folder)
        .map_err(|error| StageError::input(name, error.message(), "give a GGUF file of a Llama model"))
}

pub(super) fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// Of what a file or folder of the user's will be in the store.
pub(super) fn outlook_of(source: &Path) -> Outlook {
    if !is_gguf(source) {
        return model_folder::outlook(source);
    }
    let config = gguf::language_config(source).ok();
    let bytes = config.as_ref().map_or(0, |config| 2 * config.parameters() as u64);
    Outlook::of_language_model(config, bytes)
}
