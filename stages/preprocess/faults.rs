//! What is wrong with the stage's inputs as a whole. Independent of records.

use std::path::Path;

use crate::{
    StageError,
    text::{template::Template, tokenizer::TextTokenizer},
};

/// Checks that the model has an embedding for each of the template's tokens, so that this is not found out in training.
pub(super) fn check_rows(
    template: Template,
    tokenizer: &TextTokenizer,
    rows: Option<usize>,
    folder: &Path,
) -> Result<(), StageError> {
    let Some(rows) = rows else { return Ok(()) };
    let beyond = template.tokens().iter().filter_map(|token| Some((token, tokenizer.id(token)?)));
    let Some((token, id)) = beyond.into_iter().find(|(_, id)| *id as usize >= rows) else { return Ok(()) };
    let message = format!(
        "the template `{}` needs `{token}`, which is token {id}, but the model has {rows} embeddings (0 to {})",
        template.name(),
        rows.saturating_sub(1)
    );
    let help = "choose the template of the model's own family, or a model with a larger `vocab_size`: Phi-2's file has \
                51200 embeddings for 50295 tokens";
    Err(StageError::input(folder.join("config.json"), message, help))
}

pub(super) fn unreadable(data: &Path, path: &Path, named: &Path, error: std::io::Error) -> StageError {
    if error.kind() != std::io::ErrorKind::NotFound {
        return StageError::Io { path: path.to_path_buf(), source: error };
    }
    let mut others: Vec<String> = std::fs::read_dir(data)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "json" || end == "jsonl"))
        .collect();
    others.sort();
    others.truncate(8);
    let help = if others.is_empty() {
        "`annotations` must name a JSON file in LLaVA's format in the data folder, which has no JSON files".into()
    } else {
        format!("`annotations` must name a file in the data folder; it has: {}", others.join(", "))
    };
    StageError::input(named, "the annotation file is missing", help)
}
