//! Operations on files and folders: list, measure, remove, open, rename. Independent of their content.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use imp_stages::contract::side_file;

use super::{
    disk,
    error::{Result, StoreError, is_read_only},
};

/// All files below `folder`; none if it does not exist.
pub(super) fn files(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = walkdir::WalkDir::new(folder).into_iter().flatten();
    entries.filter(|entry| entry.file_type().is_file()).map(walkdir::DirEntry::into_path)
}

/// Removes a file, a link or a folder, if it exists.
pub(super) fn remove_all(path: &Path) -> Result<()> {
    let is_file = path.symlink_metadata().is_ok_and(|found| !found.is_dir());
    match if is_file { disk::remove_file(path) } else { disk::remove_dir_all(path) } {
        Err(error) if is_kept(&error) => remove_but_kept(path).map_err(StoreError::io(path)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::Io { path: path.to_path_buf(), source: error })
        }
        _ => Ok(()),
    }
}

/// What is at `path`, also if another machine has just made it.
pub(crate) fn look_up(path: &Path) -> io::Result<fs::Metadata> {
    twice(path, || path.symlink_metadata())
}

/// Whether there is a folder, also if another machine has just made it.
pub(super) fn is_folder(path: &Path) -> bool {
    look_up(path).is_ok_and(|found| found.is_dir())
}

/// Does it again if `path` is said not to be there. NFS remembers for up to a minute that a name was missing, until it sees that
/// the folder has changed; opening the folder makes it ask the server.
fn twice<T>(path: &Path, try_it: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match try_it() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            look_again(path);
            try_it()
        }
        done => done,
    }
}

/// Has NFS look anew for what is at `path`, see [`twice`]. Its folder may be new, too.
pub(crate) fn look_again(path: &Path) {
    // Of `.` the server is not asked.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let folders: Vec<&Path> = path.ancestors().skip(1).take(2).collect();
    for folder in folders.into_iter().rev() {
        // Where there is none, nothing is in it.
        let _ = File::open(folder);
    }
}

/// Opens a file to be read, also if another machine has just made it.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    twice(path, || File::open(path))
}

/// Removes all but what NFS keeps: a file that somebody has open, under another name until it is closed, and the folders above it.
fn remove_but_kept(path: &Path) -> io::Result<()> {
    for entry in walkdir::WalkDir::new(path).contents_first(true) {
        let entry = match entry {
            Err(error) if error.io_error().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) => continue,
            entry => entry.map_err(io::Error::from)?,
        };
        let is_folder = entry.file_type().is_dir();
        let removed = if is_folder { fs::remove_dir(entry.path()) } else { disk::remove_file(entry.path()) };
        match removed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if is_kept(&error) && (is_folder || is_nfs_s_own(entry.path())) => {}
            removed => removed?,
        }
    }
    let is_foreign = |entry: walkdir::Result<walkdir::DirEntry>| match entry {
        Ok(entry) => !entry.file_type().is_dir() && !is_nfs_s_own(entry.path()),
        Err(_) => true,
    };
    // A folder may have been kept for another reason.
    if path.exists() && walkdir::WalkDir::new(path).into_iter().any(is_foreign) {
        return Err(io::ErrorKind::DirectoryNotEmpty.into());
    }
    Ok(())
}

fn is_kept(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy)
}

fn is_nfs_s_own(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".nfs"))
}

/// The content of a regular file. What else stands in its place is an error, and never waited for, such as a pipe.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    disk::before_reading(path);
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
    let open = || OpenOptions::new().read(true).custom_flags(nonblocking.cast_signed()).open(path);
    let mut file = twice(path, open)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "this is not a file"));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The entries of a folder; none if it does not exist.
pub(super) fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    disk::before_reading(folder);
    match twice(folder, || fs::read_dir(folder)) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(StoreError::Io { path: folder.to_path_buf(), source }),
    }
}

/// When `path` was last modified, in seconds since 1970; 0 if unknown.
pub(super) fn modified(path: &Path) -> u64 {
    let time = path.metadata().and_then(|data| data.modified()).ok();
    time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |age| age.as_secs())
}

/// The total size in bytes of all files below `path`.
pub(super) fn size(path: &Path) -> u64 {
    files(path).filter_map(|file| file.metadata().ok()).map(|data| data.len()).sum()
}

/// Opens a file to be locked. Creates it if it does not exist, and moves aside what is in its place. `None` if it does not exist
/// and this process may not create it, as in a cache of someone else. Where it may only be read, that is enough for a lock.
///
/// NFS gives a shared lock only on what is open for reading, and an exclusive one only on what is open for writing.
pub(super) fn open_lock(path: &Path) -> Result<Option<File>> {
    let open = || OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
    let opened = match make_parent(path).map(|()| open()) {
        Ok(Err(error)) if error.kind() == io::ErrorKind::IsADirectory => {
            side_file::make_room(path).map_err(StoreError::io(path))?;
            open()
        }
        Ok(opened) => opened,
        Err(StoreError::Io { source, .. }) => Err(source),
        Err(error) => return Err(error),
    };
    match opened {
        Ok(file) => {
            share_lock(&file, path);
            Ok(Some(file))
        }
        Err(error) if is_read_only(&error) => Ok(File::open(path).ok()),
        Err(source) => Err(StoreError::Io { path: path.to_path_buf(), source }),
    }
}

/// Lets those write into a lock who may write into the cache folder, which is two above it: the umask of whoever makes it may not, and
/// on NFS what may only be read can't be locked alone.
fn share_lock(file: &File, path: &Path) {
    let cache = path.ancestors().nth(2).and_then(|cache| cache.metadata().ok());
    let (Some(cache), Ok(own), Ok(there)) = (cache, file.metadata(), path.symlink_metadata()) else { return };
    // A link may lead to a file of this user's that has nothing to do with the cache.
    let is_own = there.is_file() && (there.dev(), there.ino(), own.nlink()) == (own.dev(), own.ino(), 1);
    let (cache, own) = (cache.permissions().mode(), own.permissions().mode());
    let wanted = own | (cache & 0o022) | ((cache & 0o022) << 1);
    if is_own && own != wanted {
        // It belongs to someone else, who decides.
        let _ = file.set_permissions(fs::Permissions::from_mode(wanted));
    }
}

/// Opens a file that exists to be locked alone, see [`open_lock`].
pub(super) fn open_to_lock(path: &Path) -> io::Result<File> {
    match OpenOptions::new().read(true).write(true).open(path) {
        // That of another member of a group. Elsewhere, reading is enough.
        Err(error) if is_read_only(&error) => File::open(path),
        opened => opened,
    }
}

/// Creates the parent folder of `path`.
pub(super) fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    disk::create_dir_all(parent).map_err(StoreError::io(parent))
}

/// Renames a complete temporary file to its final name.
pub(super) fn move_into_place(from: tempfile::TempPath, to: &Path) -> Result<()> {
    make_parent(to)?;
    disk::rename(&from, to).map_err(StoreError::io(to))?;
    // It has another name now.
    let _ = from.keep();
    Ok(())
}

/// Makes the name of the new file `of` durable. On a journaling file system this includes names that were created earlier.
pub(super) fn sync_folder(of: &Path) -> Result<()> {
    let Some(parent) = of.parent() else { return Ok(()) };
    disk::sync(parent).map_err(StoreError::io(parent))
}
