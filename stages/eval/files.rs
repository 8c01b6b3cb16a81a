//! Finds a benchmark's files in the data folders, by the configured name or the names that their publishers gave them.
//! Independent of what is in them.

use std::path::{Path, PathBuf};

use imp_model::weights::looks_like;
use serde::de::DeserializeOwned;

use super::config::EvalConfig;
use crate::{
    Job, StageError,
    text::json_records::{Cursor, Records, in_plain_words},
};

/// The data folders of a stage, and the keys that name files.
pub(super) struct Files<'a> {
    pub(super) config: &'a EvalConfig,
    job: &'a Job,
    folders: Vec<&'a Path>,
}

/// A file or folder to find.
#[derive(Clone, Copy)]
struct Lookup<'a> {
    /// The key that names it.
    key: &'a str,
    /// The key's value.
    configured: Option<&'a str>,
    /// Default paths, ending with the publishers' own name.
    usual: &'a [&'a str],
}

/// A text file of a benchmark.
pub(super) struct Text {
    pub(super) text: String,
    /// The path to show to the user.
    pub(super) named: PathBuf,
}

impl<'a> Files<'a> {
    pub(super) fn new(config: &'a EvalConfig, job: &'a Job) -> Self {
        Self { config, job, folders: job.inputs("data").collect() }
    }

    /// The question file: the configured one, otherwise the first of `usual` that exists. `usual` ends with the publishers'
    /// own name, which messages show.
    pub(super) fn questions(&self, usual: &[&str]) -> Result<Text, StageError> {
        self.text(self.question_lookup(usual))
    }

    /// The folder that `questions` names, which must contain `file`.
    pub(super) fn question_folder(&self, usual: &[&str], file: &str) -> Result<PathBuf, StageError> {
        let lookup = self.question_lookup(usual);
        let folder = self.candidates(lookup).find(|folder| folder.join(file).exists());
        folder.ok_or_else(|| self.missing(lookup, file))
    }

    /// The annotation file.
    pub(super) fn annotations(&self, usual: &[&str]) -> Result<Text, StageError> {
        self.text(Lookup { key: "annotations", configured: self.config.annotations.as_deref(), usual })
    }

    /// The file called `name`, which is the value of `key`.
    pub(super) fn named_by(&self, key: &str, name: &str) -> Result<Text, StageError> {
        self.text(Lookup { key, configured: Some(name), usual: &[] })
    }

    /// `MM-Vet`'s official evaluator, which contains the rubric.
    pub(super) fn evaluator(&self) -> Result<Text, StageError> {
        let configured = self.config.judge.as_ref().and_then(|judge| judge.evaluator.as_deref());
        self.text(Lookup {
            key: "judge.evaluator",
            configured,
            usual: &["mm-vet_evaluator.py", "mm-vet_evaluator.ipynb"],
        })
    }

    /// A file that may be missing.
    pub(super) fn optional(&self, usual: &[&str]) -> Result<Option<Text>, StageError> {
        let found = self.candidates(Lookup { key: "", configured: None, usual }).find(|path| path.is_file());
        found.map(|path| self.read(&path)).transpose()
    }

    /// The folders to search for images.
    pub(super) fn images(&self, usual: &[&str]) -> Images {
        let lookup = Lookup { key: "image_folder", configured: self.config.image_folder.as_deref(), usual };
        let mut folders: Vec<PathBuf> = self.candidates(lookup).filter(|folder| folder.is_dir()).collect();
        if folders.is_empty() {
            // Messages about missing images need a path.
            folders.extend(self.candidates(lookup).last());
        }
        Images { folders }
    }

    /// Reads a text file.
    pub(super) fn read(&self, path: &Path) -> Result<Text, StageError> {
        let named = self.job.named(path);
        let bytes = std::fs::read(path).map_err(StageError::io(path))?;
        if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = bytes[..] {
            let help = "save it as UTF-8; in PowerShell: `Out-File -Encoding utf8`";
            return Err(StageError::input(named, "the file is text in UTF-16", help));
        }
        if let Some(what) = looks_like(&bytes) {
            return Err(StageError::input(named, format!("this is {what}"), "give the benchmark's own file"));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Text { text: text.strip_prefix('\u{feff}').map(Into::into).unwrap_or(text), named }),
            Err(_) => Err(StageError::input(named, "the file is not UTF-8 text", "give the benchmark's own file")),
        }
    }

    /// The path of a file to show to the user.
    pub(super) fn named(&self, path: &Path) -> PathBuf {
        self.job.named(path)
    }

    fn question_lookup<'w>(&'w self, usual: &'w [&'w str]) -> Lookup<'w> {
        Lookup { key: "questions", configured: self.config.questions.as_deref(), usual }
    }

    fn text(&self, lookup: Lookup<'_>) -> Result<Text, StageError> {
        let path = self.candidates(lookup).find(|path| path.is_file()).ok_or_else(|| self.missing(lookup, ""))?;
        self.read(&path)
    }

    fn candidates<'w>(&'w self, lookup: Lookup<'w>) -> impl Iterator<Item = PathBuf> + 'w {
        let usual = if lookup.configured.is_some() { &[] } else { lookup.usual };
        let names = lookup.configured.into_iter().chain(usual.iter().copied());
        names.flat_map(|name| self.folders.iter().map(move |folder| folder.join(name)))
    }

    fn missing(&self, lookup: Lookup<'_>, file: &str) -> StageError {
        let name = lookup.configured.or(lookup.usual.last().copied()).unwrap_or_default();
        let shown = |path: &Path| self.job.named(path).display().to_string();
        let path = Path::new(name).join(file);
        let path =
            self.folders.first().map(|folder| shown(&folder.join(path.components().as_path()))).unwrap_or_default();
        let help = format!("set `{}` to the benchmark's own file in the data folder", lookup.key);
        let folders: Vec<String> = self.folders.iter().map(|folder| shown(folder)).collect();
        let searched = if folders.len() > 1 { format!("; searched {}", folders.join(", ")) } else { String::new() };
        StageError::input(path, "the file is missing", help + &searched)
    }
}

impl Text {
    /// Parses the content as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, StageError> {
        self.parse(&self.text, 1)
    }

    /// Parses the records of JSON lines, or of an array. Returns each with its line number.
    pub(super) fn json_lines<T: DeserializeOwned>(&self) -> Result<Vec<(usize, T)>, StageError> {
        if !self.text.trim_start().starts_with('[') {
            // A line that is broken must not hide that the next ones are whole.
            let lines = self.text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
            return lines.map(|(line, number)| Ok((number, self.parse(line, number)?))).collect();
        }
        Records::new(self.text.as_bytes(), Cursor::default())
            .map(|record| {
                let record = record.map_err(|broken| self.error(broken.message).at_line(broken.line))?;
                let text = std::str::from_utf8(record.text).map_err(|error| self.error(error.to_string()))?;
                Ok((record.line, self.parse(text, record.line)?))
            })
            .collect()
    }

    /// An error about the file.
    pub(super) fn error(&self, message: impl Into<String>) -> StageError {
        StageError::input(&self.named, message, "give the benchmark's own file, unchanged")
    }

    fn parse<T: DeserializeOwned>(&self, text: &str, first_line: usize) -> Result<T, StageError> {
        serde_json::from_str(text)
            .map_err(|error| self.error(in_plain_words(&error)).at_line(first_line + error.line().max(1) - 1))
    }
}

/// Folders of images.
pub(super) struct Images {
    folders: Vec<PathBuf>,
}

impl Images {
    /// One folder.
    #[cfg(test)]
    pub(super) fn in_folder(folder: impl Into<PathBuf>) -> Self {
        Self { folders: vec![folder.into()] }
    }

    /// The path of the image with one of these names, or of the first name in the first folder if there is none.
    pub(super) fn find(&self, names: &[&str]) -> PathBuf {
        let all = self.folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        // Most benchmarks have all images in one folder; no need to check each file.
        if let ([folder], [name]) = (self.folders.as_slice(), names) {
            return folder.join(name);
        }
        let mut first = None;
        for path in all {
            if path.is_file() {
                return path;
            }
            first.get_or_insert(path);
        }
        first.unwrap_or_default()
    }
}
