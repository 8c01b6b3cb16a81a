//! Selects files of a source by patterns. Independent of where the files are.

use std::fmt::Display;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::StageError;

/// The value of `files`. As in `huggingface_hub`, `*` also matches `/`. No pattern means every file.
pub(crate) struct Patterns {
    texts: Vec<String>,
    globs: GlobSet,
}

impl Patterns {
    pub(crate) fn new(texts: &[String]) -> Result<Self, StageError> {
        let globs = patterns(texts).map_err(|message| StageError::failed(message, "correct `files`"))?;
        Ok(Self { texts: texts.to_vec(), globs })
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.texts.is_empty() || self.globs.is_match(name)
    }

    /// Checks that each pattern matches a file: a mistyped pattern would otherwise show much later.
    pub(crate) fn all_used(&self, names: &[String], source: &impl Display) -> Result<(), StageError> {
        let mut used = vec![false; self.texts.len()];
        names.iter().flat_map(|name| self.globs.matches(name)).for_each(|index| used[index] = true);
        let Some(unused) = used.iter().position(|used| !used) else { return Ok(()) };
        let mut shown: Vec<&str> = names.iter().map(String::as_str).collect();
        shown.truncate(12);
        let more = if names.len() > shown.len() { ", ..." } else { "" };
        Err(StageError::failed(
            format!("`{}` in `files` matches no file of {source}", self.texts[unused]),
            format!("it has: {}{more}", shown.join(", ")),
        ))
    }
}

/// Compiles patterns.
///
/// # Errors
/// The first invalid pattern, as text that continues the name of the key.
pub(crate) fn patterns(texts: &[String]) -> Result<GlobSet, String> {
    let mut builder = GlobSetBuilder::new();
    for text in texts {
        builder.add(
            Glob::new(text)
                .map_err(|error| format!("contains `{text}`, which is not a valid pattern: {}", error.kind()))?,
        );
    }
    builder.build().map_err(|error| error.to_string())
}
