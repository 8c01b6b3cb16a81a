//! The folder in which a stage writes its output, which may lie on another disk than its inputs and its checkpoints: how files get there
//! without being written twice. Independent of what they are.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::error::StageError;

/// The folder of the output.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    /// Whether it is only there until it is complete.
    is_elsewhere: bool,
    /// Files that are in it as links only, by their paths in it.
    linked: Mutex<BTreeMap<PathBuf, PathBuf>>,
}

impl Output {
    pub(super) fn new(folder: PathBuf, is_elsewhere: bool) -> Self {
        Self { folder, is_elsewhere, linked: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn linked(&self) -> BTreeMap<PathBuf, PathBuf> {
        self.linked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The path of a file in it, whose folder is made.
    fn target(&self, relative: &Path) -> Result<PathBuf, StageError> {
        let target = self.folder.join(relative);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(StageError::io(parent))?;
        }
        Ok(target)
    }

    pub(super) fn link(&self, file: &Path, relative: &Path) -> Result<(), StageError> {
        let target = self.target(relative)?;
        let file = fs::canonicalize(file).map_err(StageError::io(file))?;
        if fs::hard_link(&file, &target).is_ok() {
            return Ok(());
        }
        // Whoever takes the output into its place links or copies the file itself.
        if self.is_elsewhere && symlink(&file, &target).is_ok() {
            self.linked.lock().unwrap_or_else(PoisonError::into_inner).insert(relative.to_path_buf(), file);
            return Ok(());
        }
        fs::copy(&file, &target).map(drop).map_err(StageError::io(&target))
    }

    pub(super) fn take(&self, file: &Path, relative: &Path) -> Result<(), StageError> {
        if self.is_elsewhere {
            // It stays, too, until the output is in its place: what a stage has made that is killed before is not lost.
            return self.link(file, relative);
        }
        let target = self.target(relative)?;
        fs::rename(file, &target).map_err(StageError::io(&target))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A folder here and one on another file system, if this machine has two.
    fn two_disks() -> Option<[tempfile::TempDir; 2]> {
        let [here, there] = [tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").ok()?];
        let disk = |folder: &tempfile::TempDir| folder.path().metadata().unwrap().dev();
        (disk(&here) != disk(&there)).then_some([here, there])
    }

    #[test]
    fn files_get_into_an_output_on_another_disk() {
        let Some([here, there]) = two_disks() else {
            println!("skipped: /dev/shm is no other file system than that of temporary files");
            return;
        };
        let (input, checkpoint) = (here.path().join("input"), here.path().join("checkpoint"));
        fs::write(&input, "input").unwrap();
        fs::write(&checkpoint, "made").unwrap();
        let output = Output::new(there.path().into(), true);
        output.take(&checkpoint, Path::new("a/made")).unwrap();
        assert!(checkpoint.exists(), "it is still there for who is killed now");
        assert_eq!(fs::read_to_string(there.path().join("a/made")).unwrap(), "made");
        output.link(&input, Path::new("b/input")).unwrap();
        assert_eq!(fs::read_to_string(there.path().join("b/input")).unwrap(), "input");
        assert!(there.path().join("b/input").is_symlink(), "it is not copied there");
        let input = input.canonicalize().unwrap();
        let checkpoint = checkpoint.canonicalize().unwrap();
        let linked = [("a/made".into(), checkpoint), ("b/input".into(), input.clone())];
        assert_eq!(output.linked(), BTreeMap::from(linked));
        // Where the output stays, it is complete by itself.
        let stays = Output::new(there.path().join("stays"), false);
        stays.link(&input, Path::new("input")).unwrap();
        assert!(!there.path().join("stays/input").is_symlink() && stays.linked().is_empty());
    }

    #[test]
    fn on_one_disk_nothing_is_copied() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let number = |name: &str| path(name).metadata().unwrap().ino();
        fs::write(path("input"), "").unwrap();
        fs::write(path("checkpoint"), "").unwrap();
        let (input, checkpoint) = (number("input"), number("checkpoint"));
        let output = Output::new(path("elsewhere"), true);
        output.link(&path("input"), Path::new("linked")).unwrap();
        output.take(&path("checkpoint"), Path::new("taken")).unwrap();
        assert_eq!([number("elsewhere/linked"), number("elsewhere/taken")], [input, checkpoint]);
        assert!(output.linked().is_empty() && path("checkpoint").exists());
        let output = Output::new(path("out"), false);
        output.take(&path("checkpoint"), Path::new("moved")).unwrap();
        assert!(number("out/moved") == checkpoint && !path("checkpoint").exists());
        let error = output.take(&path("nothing"), Path::new("moved")).unwrap_err();
        assert!(error.to_string().contains("out/moved"), "{error}");
    }
}
