//! Writes a stage's output on the disk of the node that it runs on, and takes it into its work folder once it is complete. Independent
//! of how it got to that node.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, symlink},
    path::{Path, PathBuf},
};

use imp_stages::{StageError, contract::job::OUT};
use rustix::process::geteuid;
use walkdir::WalkDir;

/// What to do where the folder can't be used.
const HELP: &str = "change or remove `work` under [slurm] in imp-flow.toml or [stages.NAME.runtime.slurm]; it must be a folder of each node, \
                    and its variables must be set in jobs";

/// The random end of the name of a folder.
const RANDOM: usize = 6;

/// A stop is heard after so many bytes of a file.
const PIECE: u64 = 64 << 20;

/// A folder of this process alone on the node. It is removed with everything in it when this is dropped. What a killed process has left
/// the next one on this node removes.
#[derive(Debug)]
pub(super) struct NodeOutput {
    folder: tempfile::TempDir,
    /// Held as long as this process lives.
    #[cfg_attr(not(test), expect(dead_code, reason = "what counts is how long it is open"))]
    lock: File,
}

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
        // The disk may be one that nodes share, and its locks need not reach from one to the other.
        let prefix = format!(".imp-flow-{}-", rustix::system::uname().nodename().to_string_lossy().replace('/', "_"));
        remove_left(disk, &prefix);
        let output = match make(disk, &prefix) {
            Ok(output) => output,
            Err(error) => return refused(&format!("can't make a folder in {} on the node: {error}", disk.display())),
        };
        fs::create_dir(output.folder()).map_err(StageError::io(&output.folder()))?;
        tracing::info!("writes its output in {}", output.folder().display());
        Ok(output)
    }

    /// The folder of the output.
    pub(super) fn folder(&self) -> PathBuf {
        self.folder.path().join(OUT)
    }

    /// Moves the output into `target`, which is an empty folder; of what is only a link to a file in `linked`, the file. Asks `check`
    /// now and then whether to go on.
    ///
    /// # Errors
    /// If it can't be read or written, and what `check` says.
    pub(super) fn take_into(
        self,
        target: &Path,
        linked: &BTreeMap<PathBuf, PathBuf>,
        check: &dyn Fn() -> Result<(), StageError>,
    ) -> Result<(), StageError> {
        let from = self.folder();
        tracing::info!("takes its output into {}", target.display());
        // Sorted, so that a folder is read to its end before files are moved away from it.
        for entry in WalkDir::new(&from).min_depth(1).sort_by_file_name() {
            check()?;
            let entry = entry.map_err(|error| {
                let path = error.path().unwrap_or(&from).to_path_buf();
                StageError::io(&path)(error.into())
            })?;
            let relative = entry.path().strip_prefix(&from).unwrap_or(entry.path());
            let (path, kind) = (target.join(relative), entry.file_type());
            let io = StageError::io(&path);
            if kind.is_dir() {
                fs::create_dir(&path).map_err(io)?;
            } else if let Some(file) = linked.get(relative).filter(|_| kind.is_symlink()) {
                if fs::hard_link(file, &path).is_err() {
                    copy(file, &path, check)?;
                }
            } else if kind.is_symlink() {
                fs::read_link(entry.path()).and_then(|to| symlink(to, &path)).map_err(io)?;
            } else if kind.is_file() {
                if fs::rename(entry.path(), &path).is_err() {
                    copy(entry.path(), &path, check)?;
                    // The whole folder goes at the end. Until then, its disk may be short.
                    let _ = fs::remove_file(entry.path());
                }
            } else {
                return Err(StageError::failed(
                    format!("its output has {}, which is neither a file nor a folder", entry.path().display()),
                    "let it write files",
                ));
            }
        }
        Ok(())
    }
}

/// Makes a folder that nobody takes for one that was left.
fn make(disk: &Path, prefix: &str) -> io::Result<NodeOutput> {
    loop {
        let folder = tempfile::Builder::new().prefix(prefix).rand_bytes(RANDOM).tempdir_in(disk)?;
        let lock = match File::open(folder.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        // On NFS the lock of a folder stays on this machine, as its name has it. Without locks nobody can take it for one that was
        // left either.
        let _ = lock.lock();
        // Somebody may have removed it before it was locked.
        if folder.path().is_dir() {
            return Ok(NodeOutput { folder, lock });
        }
    }
}

/// Removes what processes of this user have left that were killed on this node.
fn remove_left(disk: &Path, prefix: &str) {
    for entry in fs::read_dir(disk).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_ours = || entry.metadata().is_ok_and(|about| about.is_dir() && about.uid() == geteuid().as_raw());
        if !is_name(&name.to_string_lossy(), prefix) || !is_ours() || !holds_output_only(&path) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() {
            match fs::remove_dir_all(&path) {
                Ok(()) => tracing::info!("removed {}, which a stage that was killed has left", path.display()),
                Err(error) => tracing::warn!("can't remove {}, which a killed stage has left: {error}", path.display()),
            }
        }
    }
}

/// Whether a folder is called as one of these: on a disk that nodes share, one of them may be called `gpu` and another `gpu-2`.
fn is_name(name: &str, prefix: &str) -> bool {
    let random = name.strip_prefix(prefix).unwrap_or_default();
    random.len() == RANDOM && random.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn holds_output_only(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == OUT)))
}

/// Copies a file with its permissions, piece by piece. On a shared disk, only flushing tells that it is full.
fn copy(from: &Path, to: &Path, check: &dyn Fn() -> Result<(), StageError>) -> Result<(), StageError> {
    let open = || Ok((File::open(from)?, File::create_new(to)?));
    let (mut source, mut target) = open().map_err(StageError::io(to))?;
    while io::copy(&mut source.by_ref().take(PIECE), &mut target).map_err(StageError::io(to))? > 0 {
        check()?;
    }
    let permissions = source.metadata().and_then(|about| target.set_permissions(about.permissions()));
    permissions.and_then(|()| target.sync_all()).map_err(StageError::io(to))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stdout)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const GO_ON: &dyn Fn() -> Result<(), StageError> = &|| Ok(());

    #[test]
    fn an_output_arrives_as_it_was_and_leaves_nothing_on_the_node() {
        let (disk, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let output = NodeOutput::begin(disk.path()).unwrap();
        let folder = output.folder();
        fs::create_dir_all(folder.join("a/empty")).unwrap();
        fs::write(folder.join("a/file"), "text").unwrap();
        symlink("a/file", folder.join("link")).unwrap();
        fs::write(work.path().join("input"), "input").unwrap();
        symlink(work.path().join("input"), folder.join("a/linked")).unwrap();
        fs::create_dir(work.path().join("out")).unwrap();
        let linked = BTreeMap::from([("a/linked".into(), work.path().join("input"))]);
        let out = work.path().join("out");
        output.take_into(&out, &linked, GO_ON).unwrap();
        let number = |path: PathBuf| path.symlink_metadata().unwrap().ino();
        assert_eq!(number(out.join("a/linked")), number(work.path().join("input")), "it is not copied");
        assert_eq!(fs::read_to_string(out.join("a/file")).unwrap(), "text");
        assert!(out.join("a/empty").is_dir());
        assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("a/file"));
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        // So does one that is not complete.
        drop(NodeOutput::begin(disk.path()).unwrap());
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_output_is_copied_from_another_disk_until_it_is_to_stop() {
        let number = |folder: &tempfile::TempDir| folder.path().metadata().unwrap().dev();
        let work = tempfile::tempdir().unwrap();
        let Some(disk) = tempfile::tempdir_in("/dev/shm").ok().filter(|disk| number(disk) != number(&work)) else {
            println!("skipped: /dev/shm is no other file system than that of temporary files");
            return;
        };
        let output = NodeOutput::begin(disk.path()).unwrap();
        let folder = output.folder();
        for name in ["a", "b", "c"] {
            fs::write(folder.join(name), name).unwrap();
        }
        fs::set_permissions(folder.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
        let asked = std::cell::Cell::new(0);
        let check = || {
            asked.set(asked.get() + 1);
            if asked.get() > 3 { Err(StageError::Cancelled) } else { Ok(()) }
        };
        assert!(matches!(output.take_into(work.path(), &BTreeMap::new(), &check), Err(StageError::Cancelled)));
        assert!(fs::read_dir(work.path()).unwrap().count() < 3);
        assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);

        let [from, to] = ["from", "to"].map(|name| work.path().join(name));
        fs::write(&from, "text").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o500)).unwrap();
        copy(&from, &to, GO_ON).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "text");
        assert_eq!(to.metadata().unwrap().permissions().mode() & 0o777, 0o500);
    }

    #[test]
    fn what_a_killed_process_has_left_goes_and_what_is_at_work_stays() {
        let disk = tempfile::tempdir().unwrap();
        let at_work = NodeOutput::begin(disk.path()).unwrap();
        // Its lock goes with its process.
        let killed = NodeOutput::begin(disk.path()).unwrap();
        let left = killed.folder.keep();
        drop(killed.lock);
        let host = left.file_name().unwrap().to_string_lossy()[..].rsplit_once('-').unwrap().0.to_string();
        // Of another node with a longer name; of a person; of a person again, with a name like ours.
        let foreign = [format!("{host}-2-Ab12Cd"), format!("{host}-results"), format!("{host}-result")];
        for name in &foreign {
            fs::create_dir_all(disk.path().join(name).join("figures")).unwrap();
        }
        let next = NodeOutput::begin(disk.path()).unwrap();
        assert!(at_work.folder().is_dir() && next.folder().is_dir() && !left.exists());
        assert!(foreign.iter().all(|name| disk.path().join(name).is_dir()));
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
