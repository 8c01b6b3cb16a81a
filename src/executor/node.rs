//! Writes a stage's output on the disk of the node that it runs on, and takes it into its work folder once it is complete. Independent
//! of how it got to that node.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use imp_stages::{StageError, contract::job::OUT};
use walkdir::WalkDir;

/// What to do where the folder can't be used.
const HELP: &str = "change or remove `work` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; it must be a folder of each node, \
                    and its variables must be set in jobs";

/// A folder of this process alone on the node. It is removed with everything in it when this is dropped; what a killed process leaves is
/// for the site to remove, as it does with `$TMPDIR`.
#[derive(Debug)]
pub(super) struct NodeOutput(tempfile::TempDir);

impl NodeOutput {
    /// Makes an empty folder in `disk`.
    ///
    /// # Errors
    /// If that is not an absolute path of a folder in which there can be one.
    pub(super) fn begin(disk: &Path) -> Result<Self, StageError> {
        let refused = |why: &str| Err(StageError::failed(why.to_string(), HELP));
        if disk.as_os_str().is_empty() {
            return refused("the folder of the node where it is to work has no name: a variable is not set in the job");
        }
        if !disk.is_absolute() || !disk.is_dir() {
            return refused(&format!("{} is to be the folder of the node where it works, and is none", disk.display()));
        }
        let folder = match tempfile::Builder::new().prefix("imp-flow-").tempdir_in(disk) {
            Ok(folder) => folder,
            Err(error) => return refused(&format!("can't make a folder in {} on the node: {error}", disk.display())),
        };
        let output = Self(folder);
        fs::create_dir(output.folder()).map_err(StageError::io(&output.folder()))?;
        tracing::info!("writes its output in {}", output.folder().display());
        Ok(output)
    }

    /// The folder of the output.
    pub(super) fn folder(&self) -> PathBuf {
        self.0.path().join(OUT)
    }

    /// Copies the output into `target`, which is an empty folder, and removes it here.
    ///
    /// # Errors
    /// If it can't be read or written.
    pub(super) fn take_into(self, target: &Path) -> Result<(), StageError> {
        let from = self.folder();
        tracing::info!("takes its output into {}", target.display());
        for entry in WalkDir::new(&from).min_depth(1) {
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(&from).to_path_buf();
                StageError::io(&path)(error.into())
            })?;
            let path = target.join(entry.path().strip_prefix(&from).unwrap_or(entry.path()));
            let kind = entry.file_type();
            let copied = if kind.is_dir() {
                fs::create_dir(&path)
            } else if kind.is_symlink() {
                fs::read_link(entry.path()).and_then(|to| symlink(to, &path))
            } else if kind.is_file() {
                fs::copy(entry.path(), &path).map(drop)
            } else {
                return Err(StageError::failed(
                    format!("its output has {}, which is neither a file nor a folder", entry.path().display()),
                    "let it write files",
                ));
            };
            copied.map_err(StageError::io(&path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_output_arrives_as_it_was_and_leaves_nothing_on_the_node() {
        let (disk, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let output = NodeOutput::begin(disk.path()).unwrap();
        let folder = output.folder();
        fs::create_dir_all(folder.join("a/empty")).unwrap();
        fs::write(folder.join("a/file"), "text").unwrap();
        symlink("a/file", folder.join("link")).unwrap();
        output.take_into(work.path()).unwrap();
        assert_eq!(fs::read_to_string(work.path().join("a/file")).unwrap(), "text");
        assert!(work.path().join("a/empty").is_dir());
        assert_eq!(fs::read_link(work.path().join("link")).unwrap(), Path::new("a/file"));
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        // So does one that is not complete.
        drop(NodeOutput::begin(disk.path()).unwrap());
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_folder_of_the_node_is_named() {
        for (disk, words) in
            [("", "a variable is not set"), ("tmp", "tmp is to be"), ("/nowhere/x", "/nowhere/x is to be")]
        {
            let error = NodeOutput::begin(Path::new(disk)).unwrap_err();
            assert!(error.to_string().contains(words) && error.help() == Some(HELP), "{error}");
        }
    }
}
