//! The log of a running evaluation in the checkpoint folder, one JSON object per line, so that what is in it is not asked again.
//! Independent of what the lines mean.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};

use crate::StageError;

/// A file that lines are appended to.
pub(super) struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the file `name` in `folder` and reads its entries. Drops a line that a crash cut short, and all lines after it.
    pub(super) fn open<T: DeserializeOwned>(folder: &Path, name: &str) -> Result<(Self, Vec<T>), StageError> {
        std::fs::create_dir_all(folder).map_err(StageError::io(folder))?;
        let path = folder.join(name);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(StageError::Io { path, source }),
        };
        let (mut entries, mut whole) = (Vec::new(), 0);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(entry) if line.ends_with(b"\n") => entries.push(entry),
                _ => break,
            }
            whole += line.len() as u64;
        }
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(StageError::io(&path))?;
        file.set_len(whole).map_err(StageError::io(&path))?;
        Ok((Self { path, file }, entries))
    }

    /// Appends entries, which survive the process from then on.
    pub(super) fn add<T: Serialize>(&mut self, entries: impl IntoIterator<Item = T>) -> Result<(), StageError> {
        let mut lines = Vec::new();
        for entry in entries {
            serde_json::to_writer(&mut lines, &entry).map_err(|error| StageError::io(&self.path)(error.into()))?;
            lines.push(b'\n');
        }
        self.file.write_all(&lines).map_err(StageError::io(&self.path))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let (mut log, entries) = Log::open::<(usize, String)>(folder.path(), "log").unwrap();
        assert!(entries.is_empty());
        let given = [(3, "a \"quoted\"\nanswer".to_string()), (1, String::new())];
        log.add(&given).unwrap();
        drop(log);
        let path = folder.path().join("log");
        let whole = std::fs::read(&path).unwrap();
        for torn in ["[9, \"te", "[9, \"no newline\"]", "\0\0\0"] {
            std::fs::write(&path, [whole.as_slice(), torn.as_bytes()].concat()).unwrap();
            let (_, entries) = Log::open::<(usize, String)>(folder.path(), "log").unwrap();
            assert_eq!(entries, given);
            assert_eq!(std::fs::read(&path).unwrap(), whole);
        }
    }
}
