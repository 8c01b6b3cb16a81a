//! What a file system tells of a file or folder without reading it. What has the same stamp is assumed to be unchanged.
//! Stamps only save time: they are never part of a key.

use std::{
    fs::Metadata,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Clocks of file systems are coarse: something changed less than this long ago may change again under the same stamp.
pub(crate) const SETTLED: Duration = Duration::from_secs(2);

/// The identity, size and times of a file or folder.
///
/// A program can set the modification time to any value (`touch -r`, `cp -p`), but not the change time, so both count.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// On NFS each machine has its own number for a disk, so it does not count where stamps are kept.
    device: u64,
    inode: u64,
    pub(super) size: u64,
    /// Nanoseconds since 1970, negative before.
    modified: i128,
    changed: i128,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        let counts = |stamp: &Self| (stamp.inode, stamp.size, stamp.modified, stamp.changed);
        counts(self) == counts(other)
    }
}

impl Eq for Stamp {}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The stamp of what is at `path`; a link counts as itself.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        path.symlink_metadata().ok().as_ref().map(Self::of)
    }

    /// The stamp of what is at `path`, or what a link there leads to.
    pub(crate) fn of_target(path: &Path) -> Option<Self> {
        path.metadata().ok().as_ref().map(Self::of)
    }

    /// Whether both are the same file on disk.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }

    /// Whether it last changed at least [`SETTLED`] before `now`. A change in the future, by a clock that was set back, did not.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(UNIX_EPOCH) else { return false };
        self.changed < now.saturating_sub(SETTLED).as_nanos() as i128
    }

    /// Whether it changed before `other` did, by the clock of the same file system.
    pub(super) fn is_before(&self, other: &Self) -> bool {
        self.changed < other.changed
    }

    /// Seconds since 1970 of the earlier of its times; 0 before 1970.
    pub(super) fn earliest(&self) -> u64 {
        u64::try_from(self.modified.min(self.changed) / 1_000_000_000).unwrap_or_default()
    }
}

/// Whether the change time on the file system of `path` tells that a file has changed. Otherwise its files have to be read.
pub(super) fn is_reliable(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        /// FAT and exFAT have no change time; of FUSE, 9P and SMB, the server or the program behind decides what they report.
        const UNRELIABLE: [u32; 7] = [0x4d44, 0x2011_bab0, 0x6573_5546, 0x0102_1997, 0x517b, 0xff53_4d42, 0xfe53_4d42];
        // Anything that can't be asked can't be trusted either.
        rustix::fs::statfs(path).is_ok_and(|found| !UNRELIABLE.contains(&(found.f_type as u32)))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        true
    }
}

/// Whether a path is on NFS, where machines keep what they have written for a while.
pub(super) fn is_on_nfs(path: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        const NFS: u32 = 0x6969;
        rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u32 == NFS)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        false
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{fs, os::unix::fs::FileExt, thread::sleep};

    use super::*;

    #[test]
    fn a_change_that_keeps_size_inode_and_modification_time_changes_the_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let before = Stamp::at(&path).unwrap();
        let modified = path.metadata().unwrap().modified().unwrap();
        sleep(Duration::from_millis(20));
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"new", 0).unwrap();
        file.set_modified(modified).unwrap();
        let after = Stamp::at(&path).unwrap();
        assert_eq!((after.size, after.inode, after.modified), (before.size, before.inode, before.modified));
        assert_ne!(after, before);
    }

    #[test]
    fn what_tells_nothing_is_not_reliable() {
        assert!(!is_reliable(Path::new("/no/such/file")));
        assert!(is_reliable(Path::new("/")), "the root file system of a machine keeps change times");
    }

    #[test]
    fn times_before_1970_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let file = fs::File::create(&path).unwrap();
        let modified = [20, 10].map(|years| {
            file.set_modified(UNIX_EPOCH - Duration::from_hours(24 * 365 * years)).unwrap();
            Stamp::at(&path).unwrap().modified
        });
        assert!(modified[0] < modified[1] && modified[1] < 0, "{modified:?}");
    }

    #[test]
    fn what_was_just_written_or_lies_in_the_future_is_not_settled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "").unwrap();
        let stamp = Stamp::at(&path).unwrap();
        let now = SystemTime::now();
        assert!(!stamp.is_settled(now) && stamp.is_settled(now + Duration::from_secs(5)));
        assert!(!stamp.is_settled(now - Duration::from_hours(1)), "the clock was set back");
        assert!(!stamp.is_settled(UNIX_EPOCH - Duration::from_secs(1)));
    }
}
