//! A remote cache in a folder that several machines see, such as one of NFS. Independent of what is in it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering::Relaxed,
    time::UNIX_EPOCH,
};

use super::place::{Condition, Content, Fault, Listed, Place};
use crate::store::Store;

/// The folder for files that are being written.
pub(super) const TMP: &str = "tmp";

/// A folder.
pub(super) struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder at `root`, which has to exist: where a disk is not mounted, a new folder would take its place.
    pub(super) fn open(root: &Path) -> Result<Self, Fault> {
        match root.metadata() {
            // To collect garbage in one would destroy it.
            Ok(found) if found.is_dir() && Store::is_at(root) => {
                Err(Fault("it is the cache of a machine, and can't be shared in this way: give another folder".into()))
            }
            Ok(found) if found.is_dir() => Ok(Self { root: root.to_path_buf() }),
            Ok(_) => Err(Fault("it is not a folder".into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Fault("there is no such folder: create it, or mount the disk that has it".into()))
            }
            Err(error) => Err(fault(&error)),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Writes `content` to a new file in `tmp`, and to disk.
    fn temporary(&self, content: &Content<'_>) -> io::Result<tempfile::TempPath> {
        let tmp = self.path(TMP);
        self.make_folder(&tmp)?;
        let mut file = tempfile::Builder::new().tempfile_in(&tmp)?;
        self.share(file.path(), 0o666)?;
        match content {
            Content::Bytes(bytes) => file.write_all(bytes)?,
            Content::File { path, sent, .. } => {
                let mut source = File::open(path)?;
                let mut buffer = vec![0; 1 << 17];
                loop {
                    let bytes = source.read(&mut buffer)?;
                    if bytes == 0 {
                        break;
                    }
                    file.write_all(&buffer[..bytes])?;
                    sent.fetch_add(bytes as u64, Relaxed);
                }
            }
        }
        file.as_file().sync_all()?;
        Ok(file.into_temp_path())
    }

    /// Creates a folder below the root, and those above it.
    fn make_folder(&self, path: &Path) -> io::Result<()> {
        if path == self.root || path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.make_folder(parent)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.share(path, 0o2777),
        }
    }

    /// Gives others the permissions that they have for the root, of those in `most`: it says with whom it is shared, and the umask of
    /// whoever writes first is not asked.
    fn share(&self, path: &Path, most: u32) -> io::Result<()> {
        let mode = self.root.metadata()?.permissions().mode() & most | 0o600;
        // Some disks know no permissions.
        let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        Ok(())
    }

    fn place(&self, name: &str, content: &Content<'_>, condition: Condition) -> io::Result<bool> {
        let target = self.path(name);
        if let Some(parent) = target.parent() {
            self.make_folder(parent)?;
        }
        let file = self.temporary(content)?;
        let placed = match condition {
            Condition::Always => fs::rename(&file, &target),
            Condition::New => rename_new(&file, &target),
        };
        match placed {
            Err(error) if condition == Condition::New && error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
            Ok(()) => {
                // Of a link, the first name goes; of a renamed file, there is none left.
                drop(file);
                // A receipt must not survive a power failure that its objects don't.
                if let Some(parent) = target.parent() {
                    File::open(parent)?.sync_all()?;
                }
                Ok(true)
            }
        }
    }
}

/// Gives a file another name unless that is taken.
fn rename_new(file: &Path, target: &Path) -> io::Result<()> {
    match fs::hard_link(file, target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {}
        linked => return linked,
    }
    // No links on this disk.
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, file, CWD, target, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::EXIST) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => {}
        }
    }
    // Nor this. Between the question and the answer, another may write it; both wrote the receipt of one key.
    if target.symlink_metadata().is_ok() { Err(io::ErrorKind::AlreadyExists.into()) } else { fs::rename(file, target) }
}

impl Place for Folder {
    fn size(&self, name: &str) -> Result<Option<u64>, Fault> {
        match self.path(name).symlink_metadata() {
            Ok(found) if found.is_file() => Ok(Some(found.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(&error)),
        }
    }

    fn read(&self, name: &str, from: u64) -> Result<Option<Box<dyn Read + Send>>, Fault> {
        // A pipe in place of a file is never waited for, and a link leads nowhere.
        let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(self.path(name));
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => return Ok(None),
            Err(error) => return Err(fault(&error)),
        };
        let is_file = file.metadata().map_err(|error| fault(&error))?.is_file();
        if !is_file {
            return Ok(None);
        }
        file.seek(SeekFrom::Start(from)).map_err(|error| fault(&error))?;
        Ok(Some(Box::new(file)))
    }

    fn write(&self, name: &str, content: &Content<'_>, condition: Condition) -> Result<bool, Fault> {
        self.place(name, content, condition).map_err(|error| fault(&error))
    }

    fn list(&self, folder: &str, each: &mut dyn FnMut(Listed)) -> Result<(), Fault> {
        let top = self.path(folder);
        match top.symlink_metadata() {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(fault(&error)),
        }
        for entry in walkdir::WalkDir::new(&top) {
            let entry = match entry {
                Ok(entry) => entry,
                // It was removed meanwhile.
                Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
                Err(error) => return Err(Fault(error.to_string())),
            };
            let Ok(found) = entry.metadata() else { continue };
            let name = entry.path().strip_prefix(&self.root).ok().and_then(Path::to_str);
            if let Some(name) = name.filter(|_| found.is_file()) {
                let modified = found.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
                each(Listed {
                    name: name.into(),
                    size: found.len(),
                    modified: modified.map_or(0, |age| age.as_secs()),
                });
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), Fault> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(&error)),
            _ => Ok(()),
        }
    }
}

fn fault(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Fault("access denied".into()),
        io::ErrorKind::ReadOnlyFilesystem => Fault("it can only be read".into()),
        _ => Fault(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_object_is_whole_or_not_there_and_new_only_once() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        assert!(Folder::open(&root.path().join("no")).is_err());
        let cache = tempfile::tempdir().unwrap();
        Store::open(cache.path()).unwrap();
        assert!(Folder::open(cache.path()).is_err_and(|fault| fault.0.contains("the cache of a machine")));
        let write = |text: &str, condition| folder.write("a/b", &Content::Bytes(text.as_bytes()), condition).unwrap();
        assert!(write("first", Condition::New));
        assert!(!write("second", Condition::New));
        assert_eq!(folder.size("a/b").unwrap(), Some(5));
        assert!(write("third", Condition::Always));
        let mut text = String::new();
        folder.read("a/b", 2).unwrap().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "ird");
        let mut names = Vec::new();
        folder.list("a", &mut |listed| names.push((listed.name, listed.size))).unwrap();
        assert_eq!(names, [("a/b".to_string(), 5)]);
        folder.list("no", &mut |_| panic!("there is none")).unwrap();
        folder.remove("a/b").unwrap();
        folder.remove("a/b").unwrap();
        assert!(folder.size("a/b").unwrap().is_none() && folder.read("a/b", 0).unwrap().is_none());
        assert_eq!(fs::read_dir(root.path().join(TMP)).unwrap().count(), 0, "nothing is left over");
    }

    /// Also below a umask that gives nobody anything: what is new would have 0o700 and 0o600.
    #[test]
    fn what_is_new_is_shared_with_those_who_share_the_root() {
        let root = tempfile::tempdir().unwrap();
        let mode = |name: &str| root.path().join(name).metadata().unwrap().permissions().mode() & 0o7777;
        for (number, shared, folders, files) in
            [(0, 0o2770, 0o2770, 0o660), (1, 0o755, 0o755, 0o644), (2, 0o700, 0o700, 0o600)]
        {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(shared)).unwrap();
            let _ = fs::remove_dir(root.path().join(TMP));
            let folder = Folder::open(root.path()).unwrap();
            let (above, name) = (format!("{number}"), format!("{number}/b/c"));
            folder.write(&name, &Content::Bytes(b"x"), Condition::New).unwrap();
            assert_eq!([mode(&above), mode(&format!("{above}/b")), mode(TMP)], [folders; 3], "{shared:o}");
            assert_eq!(mode(&name), files, "{shared:o}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(root.path().join("pipe")).status().unwrap().success());
        std::os::unix::fs::symlink("/etc/hosts", root.path().join("link")).unwrap();
        for name in ["folder", "pipe", "link"] {
            assert!(!matches!(folder.read(name, 0), Ok(Some(_))), "{name}");
        }
    }
}
