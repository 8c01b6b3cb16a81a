//! A folder for a fuzz target that reads files. Compiled for tests and with the feature `fuzzing` only.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A folder that is removed in the end.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    /// A folder with one file.
    pub(crate) fn with(name: &str, bytes: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap_or_else(|error| panic!("no folder for temporary files: {error}"));
        let scratch = Self(folder);
        scratch.write(name, bytes);
        scratch
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        let written = fs::create_dir_all(path.parent().unwrap_or(&path)).and_then(|()| fs::write(&path, bytes));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// The names in the folder, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}
