//! Where a benchmark's files lie: in any of the data folders, under the name that the configuration gives, or else under
//! those that their owners gave them. Does not know what is in them.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::config::EvalConfig;
use crate::{Job, StageError};

/// The data folders of a stage, and the keys that name files in them.
pub(super) struct Files<'a> {
    pub(super) config: &'a EvalConfig,
    job: &'a Job,
    folders: Vec<&'a Path>,
}

/// A file or folder that is looked for.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    /// The key that names it.
    key: &'a str,
    /// What the key says.
    configured: Option<&'a str>,
    /// Where it usually lies, the owners' own name last.
    usual: &'a [&'a str],
}

/// A text file of a benchmark.
pub(super) struct Text {
    pub(super) text: String,
    /// The path by which a person knows it.
    pub(super) named: PathBuf,
}

impl<'a> Files<'a> {
    pub(super) fn new(config: &'a EvalConfig, job: &'a Job) -> Self {
        Self { config, job, folders: job.inputs("data").collect() }
    }

    /// The question file: the one that the configuration names, else the first of `usual` that is there, the owners' own
    /// name last.
    pub(super) fn questions(&self, usual: &[&str]) -> Result<Text, StageError> {
        self.text(self.wanted_questions(usual))
    }

    /// The folder that `questions` names, in which `file` must lie.
    pub(super) fn question_folder(&self, usual: &[&str], file: &str) -> Result<PathBuf, StageError> {
        let wanted = self.wanted_questions(usual);
        let folder = self.candidates(wanted).find(|folder| folder.join(file).exists());
        folder.ok_or_else(|| self.missing(wanted, file))
    }

    /// The annotation file.
    pub(super) fn annotations(&self, usual: &[&str]) -> Result<Text, StageError> {
        self.text(Wanted { key: "annotations", configured: self.config.annotations.as_deref(), usual })
    }

    /// A file that the key `key` names.
    pub(super) fn named_by(&self, key: &str, name: &str) -> Result<Text, StageError> {
        self.text(Wanted { key, configured: Some(name), usual: &[] })
    }

    /// `MM-Vet`'s official evaluator, which has the rubric.
    pub(super) fn evaluator(&self) -> Result<Text, StageError> {
        let configured = self.config.judge.as_ref().and_then(|judge| judge.evaluator.as_deref());
        self.text(Wanted {
            key: "judge.evaluator",
            configured,
            usual: &["mm-vet_evaluator.py", "mm-vet_evaluator.ipynb"],
        })
    }

    /// A file that need not be there.
    pub(super) fn perhaps(&self, usual: &[&str]) -> Result<Option<Text>, StageError> {
        let found = self.candidates(Wanted { key: "", configured: None, usual }).find(|path| path.is_file());
        found.map(|path| self.read(&path)).transpose()
    }

    /// The folders that images are looked for in.
    pub(super) fn images(&self, usual: &[&str]) -> Images {
        let wanted = Wanted { key: "image_folder", configured: self.config.image_folder.as_deref(), usual };
        let mut folders: Vec<PathBuf> = self.candidates(wanted).filter(|folder| folder.is_dir()).collect();
        if folders.is_empty() {
            // A message must name some place.
            folders.extend(self.candidates(wanted).last());
        }
        Images { folders }
    }

    /// The content of a file.
    pub(super) fn read(&self, path: &Path) -> Result<Text, StageError> {
        let named = self.job.named(path);
        let bytes = std::fs::read(path).map_err(StageError::io(path))?;
        match String::from_utf8(bytes) {
            Ok(text) => Ok(Text { text, named }),
            Err(_) => Err(StageError::input(named, "the file is not UTF-8 text", "give the benchmark's own file")),
        }
    }

    /// For messages: the path by which a person knows a file.
    pub(super) fn named(&self, path: &Path) -> PathBuf {
        self.job.named(path)
    }

    fn wanted_questions<'w>(&'w self, usual: &'w [&'w str]) -> Wanted<'w> {
        Wanted { key: "questions", configured: self.config.questions.as_deref(), usual }
    }

    fn text(&self, wanted: Wanted<'_>) -> Result<Text, StageError> {
        let path = self.candidates(wanted).find(|path| path.is_file()).ok_or_else(|| self.missing(wanted, ""))?;
        self.read(&path)
    }

    fn candidates<'w>(&'w self, wanted: Wanted<'w>) -> impl Iterator<Item = PathBuf> + 'w {
        let usual = if wanted.configured.is_some() { &[] } else { wanted.usual };
        let names = wanted.configured.into_iter().chain(usual.iter().copied());
        names.flat_map(|name| self.folders.iter().map(move |folder| folder.join(name)))
    }

    fn missing(&self, wanted: Wanted<'_>, file: &str) -> StageError {
        let name = wanted.configured.or(wanted.usual.last().copied()).unwrap_or_default();
        let known = |path: &Path| self.job.named(path).display().to_string();
        let path = Path::new(name).join(file);
        let path =
            self.folders.first().map(|folder| known(&folder.join(path.components().as_path()))).unwrap_or_default();
        let help = format!("set `{}` to the benchmark's own file in the data folder", wanted.key);
        let folders: Vec<String> = self.folders.iter().map(|folder| known(folder)).collect();
        let places = if folders.len() > 1 { format!("; looked for in {}", folders.join(", ")) } else { String::new() };
        StageError::input(path, "the file is missing", help + &places)
    }
}

impl Text {
    /// Its content as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, StageError> {
        self.parse(&self.text, 1)
    }

    /// Its lines as JSON, each with its number. Empty ones are left out.
    pub(super) fn json_lines<T: DeserializeOwned>(&self) -> Result<Vec<(usize, T)>, StageError> {
        let lines = self.text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        lines.map(|(line, number)| Ok((number, self.parse(line, number)?))).collect()
    }

    /// Something that is wrong with it.
    pub(super) fn error(&self, message: impl Into<String>) -> StageError {
        StageError::input(&self.named, message, "give the benchmark's own file, unchanged")
    }

    fn parse<T: DeserializeOwned>(&self, text: &str, first_line: usize) -> Result<T, StageError> {
        serde_json::from_str(text).map_err(|error| {
            let whole = error.to_string();
            let message = whole.split(" at line ").next().unwrap_or_default();
            self.error(message).at_line(first_line + error.line().max(1) - 1)
        })
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

    /// The image that has one of these names; the first name in the first folder if none has.
    pub(super) fn find(&self, names: &[&str]) -> PathBuf {
        let all = self.folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name)));
        // Most benchmarks have all images in one folder: then it need not be asked for each.
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
