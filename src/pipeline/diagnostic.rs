//! Errors in the user's files, with their positions. Independent of how they are shown.

use std::{collections::BTreeMap, ops::Range, path::PathBuf};

/// A range of one of the [`Sources`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Index of the file.
    pub(crate) file: usize,
    /// The range of bytes in the file.
    pub(crate) range: Range<usize>,
}

impl Span {
    /// For errors that concern the whole file.
    pub(super) fn whole_file(file: usize) -> Self {
        Self { file, range: 0..0 }
    }
}

/// An error that the user can fix.
#[derive(Debug, Clone)]
pub(crate) struct Diagnostic {
    /// What is wrong.
    pub(crate) message: String,
    /// Where.
    pub(crate) span: Option<Span>,
    /// A few words to show at the position.
    pub(crate) label: String,
    /// What to do.
    pub(crate) help: Option<String>,
}

impl Diagnostic {
    pub(crate) fn new(message: impl Into<String>, span: Option<Span>) -> Self {
        Self { message: message.into(), span, label: String::new(), help: None }
    }

    #[must_use]
    pub(crate) fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// Suggests the name in `known` that was probably meant, or lists all of them.
    #[must_use]
    pub(crate) fn suggest<'a>(self, given: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        self.suggest_also(given, known, &[])
    }

    /// Like [`Self::suggest`]; `unlisted` names are suggested but never listed.
    #[must_use]
    pub(super) fn suggest_also<'a>(
        mut self,
        given: &str,
        known: impl IntoIterator<Item = &'a str>,
        unlisted: &[&str],
    ) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        if let Some(name) = nearest(given, &known).or_else(|| nearest(given, unlisted)) {
            self.help = Some(format!("did you mean `{name}`?"));
        } else if !known.is_empty() {
            self.help = Some(format!("known: {}", known.join(", ")));
        }
        self
    }
}

/// The name in `known` that differs from `given` only by a typo. A short word with another first letter is another word: who
/// writes `gpu` does not mean `cpu`.
pub(super) fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let begins_alike = |name: &str| given.len() > 3 || given.chars().next() == name.chars().next();
    known
        .iter()
        .filter(|name| begins_alike(name))
        .map(|name| (strsim::damerau_levenshtein(given, name), *name))
        .filter(|(distance, name)| *distance <= name.len().max(given.len()) / 3)
        .min()
        .map(|(_, name)| name)
}

/// One or more errors.
pub(crate) type Diagnostics = Vec<Diagnostic>;

/// The texts that spans point into.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    files: Vec<(PathBuf, String)>,
    /// By stage: path as written -> absolute path of a user's file. Set for a pipeline that was read from the record of a run, since
    /// relative paths start from the folder of the original file.
    pub(crate) originals: BTreeMap<String, BTreeMap<String, PathBuf>>,
}

impl Sources {
    pub(crate) fn add(&mut self, path: PathBuf, text: String) -> usize {
        self.files.push((path, text));
        self.files.len() - 1
    }

    /// All files, with their texts.
    pub(crate) fn all(&self) -> impl Iterator<Item = &(PathBuf, String)> {
        self.files.iter()
    }

    pub(crate) fn path(&self, file: usize) -> &std::path::Path {
        &self.files[file].0
    }

    pub(crate) fn text(&self, file: usize) -> &str {
        &self.files[file].1
    }
}
