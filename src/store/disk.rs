//! The operations that change what is on disk and that a crash may come between. All of the store's go through here, so that a test
//! can replay every beginning of them. Independent of what is written.

use std::{fs, io, path::Path, time::Duration};

#[cfg(test)]
mod interleavings;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod turns;

/// What was done, for the test.
#[cfg(test)]
#[derive(Debug, Clone, PartialEq, Eq)]
enum Op {
    /// The content of a file, in the memory of the system.
    Write(std::path::PathBuf, Vec<u8>),
    /// What was written into a file is on disk.
    Sync(std::path::PathBuf),
    /// The same, for all files.
    SyncAll,
    MakeFolder(std::path::PathBuf),
    Rename(std::path::PathBuf, std::path::PathBuf),
    Exchange(std::path::PathBuf, std::path::PathBuf),
    Link(std::path::PathBuf, std::path::PathBuf),
    Remove(std::path::PathBuf),
}

/// Creates a folder with those above it.
pub(super) fn create_dir_all(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    if !path.is_dir() {
        turns::pause(path);
    }
    #[cfg(test)]
    let _order = order();
    fs::create_dir_all(path)?;
    #[cfg(test)]
    record(path, || Op::MakeFolder(path.into()));
    Ok(())
}

pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(to);
    fs::rename(from, to)?;
    #[cfg(test)]
    record(to, || Op::Rename(from.into(), to.into()));
    Ok(())
}

/// Gives each of two files or folders the name of the other, in one step. Not all disks can.
pub(super) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(one);
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE)?;
        #[cfg(test)]
        record(one, || Op::Exchange(one.into(), other.into()));
        Ok(())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (one, other);
        Err(io::ErrorKind::Unsupported.into())
    }
}

pub(super) fn hard_link(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(to);
    fs::hard_link(from, to)?;
    #[cfg(test)]
    record(to, || Op::Link(from.into(), to.into()));
    Ok(())
}

pub(super) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(to);
    fs::copy(from, to)?;
    #[cfg(test)]
    record(to, || Op::Write(to.into(), fs::read(to).unwrap_or_default()));
    Ok(())
}

/// Writes into an open file, which is at `path`.
pub(super) fn write(mut file: &fs::File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    use io::Write;
    #[cfg(test)]
    let _order = turn(path);
    let _ = path;
    file.write_all(bytes)?;
    #[cfg(test)]
    record(path, || Op::Write(path.into(), bytes.into()));
    Ok(())
}

/// Waits until what was written into a file is on disk.
pub(super) fn sync(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = order();
    fs::File::open(path).and_then(|file| file.sync_all())?;
    #[cfg(test)]
    record(path, || Op::Sync(path.into()));
    Ok(())
}

/// Waits until everything that was written to the file system of `folder` is on disk.
#[cfg(target_os = "linux")]
pub(super) fn sync_all(folder: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = order();
    rustix::fs::syncfs(fs::File::open(folder)?)?;
    #[cfg(test)]
    record(folder, || Op::SyncAll);
    Ok(())
}

pub(super) fn remove_file(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(path);
    fs::remove_file(path)?;
    #[cfg(test)]
    record(path, || Op::Remove(path.into()));
    Ok(())
}

/// Removes a folder and everything in it. A crash may leave any part of it.
pub(super) fn remove_dir_all(path: &Path) -> io::Result<()> {
    #[cfg(test)]
    let _order = turn(path);
    fs::remove_dir_all(path)?;
    #[cfg(test)]
    record(path, || Op::Remove(path.into()));
    Ok(())
}

/// Waits for the lock on an open file, which others may hold at the same time.
pub(super) fn lock_shared(file: &fs::File) -> io::Result<()> {
    #[cfg(test)]
    turns::wait(file, turns::Kind::Shared);
    file.lock_shared()
}

/// Waits for the lock on an open file, which nobody else holds then.
pub(super) fn lock(file: &fs::File) -> io::Result<()> {
    #[cfg(test)]
    turns::wait(file, turns::Kind::Alone);
    file.lock()
}

/// Waits a while for a lock that somebody else holds.
pub(super) async fn wait_for(file: &fs::File) {
    const A_WHILE: Duration = Duration::from_millis(50);
    let _ = file;
    #[cfg(test)]
    if turns::wait(file, turns::Kind::Alone) {
        return;
    }
    tokio::time::sleep(A_WHILE).await;
}

/// Before what is at `path` is read: a test may let others go on first.
pub(super) fn before_reading(path: &Path) {
    let _ = path;
    #[cfg(test)]
    turns::pause(path);
}

/// The folders whose operations are recorded, with these.
#[cfg(test)]
static LOGS: std::sync::Mutex<Vec<(std::path::PathBuf, Vec<Op>)>> = std::sync::Mutex::new(Vec::new());

/// Held from before an operation until it is recorded, so that records of several threads are in the order of the operations.
#[cfg(test)]
static ORDER: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
fn order() -> std::sync::MutexGuard<'static, ()> {
    ORDER.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Before an operation at `path`: a test may let others go on first.
#[cfg(test)]
fn turn(path: &Path) -> std::sync::MutexGuard<'static, ()> {
    turns::pause(path);
    order()
}

/// Records what happened at `path`, if a test asked for it.
#[cfg(test)]
fn record(path: &Path, op: impl FnOnce() -> Op) {
    let mut logs = LOGS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((_, ops)) = logs.iter_mut().find(|(root, _)| path.starts_with(root)) {
        ops.push(op());
    }
}
