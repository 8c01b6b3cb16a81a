//! Who may read what may hold secrets: logs, and work folders with the job's configuration. Independent of their content.
//!
//! The permissions of the cache folder say with whom it is shared on purpose. Whoever may write into it may also read these, since
//! they have to be able to resume a stage of someone else. Everybody else may use the results, which need no secrets. The umask is
//! not asked: it says how a user likes new files to be, not what this cache is for.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::{
    Store,
    error::{Result, StoreError},
};

/// The permissions for reading and writing of the owner, of the group and of others.
const OWNER: u32 = 0o600;
const GROUP: u32 = 0o060;
const OTHERS: u32 = 0o006;

impl Store {
    /// Makes a folder private, so that everything in it is, and lets its owner's group in if the cache is the group's.
    pub(super) fn keep_private_folder(&self, folder: &Path) -> Result<()> {
        let found = folder.metadata().map_err(StoreError::io(folder))?.permissions().mode();
        let access = self.private_access();
        // Who may read a folder may enter it. The other bits, such as the inherited group, stay.
        let wanted = (found & !0o777) | access | ((access & 0o444) >> 2);
        set(folder, found, wanted)
    }

    /// Makes a read-only file private.
    pub(super) fn keep_private_file(&self, file: &Path) -> Result<()> {
        let found = file.metadata().map_err(StoreError::io(file))?.permissions().mode();
        set(file, found, (found & !0o777) | (self.private_access() & 0o444))
    }

    /// The permissions of a file with what may hold secrets.
    pub(crate) fn private_access(&self) -> u32 {
        let cache = self.root.metadata().map_or(0, |found| found.permissions().mode());
        let shared = |by: u32, access: u32| if cache & by == 0 { 0 } else { access };
        OWNER | shared(0o020, GROUP) | shared(0o002, OTHERS)
    }
}

fn set(path: &Path, found: u32, wanted: u32) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    match fs::set_permissions(path, Permissions::from_mode(wanted)) {
        // It belongs to someone else, who decides.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        changed => changed.map_err(StoreError::io(path)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn logs_and_work_folders_are_for_those_who_may_write() {
        for (cache, folder, log) in [
            (0o755, 0o700, 0o400),
            (0o700, 0o700, 0o400),
            (0o775, 0o770, 0o440),
            (0o2775, 0o770, 0o440),
            (0o777, 0o777, 0o444),
        ] {
            let root = tempfile::tempdir().unwrap();
            let store = Store::open(&root.path().join("cache")).unwrap();
            let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
            fs::set_permissions(&store.root, Permissions::from_mode(cache)).unwrap();
            let work = store.work(super::super::Digest::of(b""));
            store.create_work(&work).unwrap();
            assert_eq!(mode(work.path()) & 0o777, folder, "{cache:o}");
            fs::set_permissions(work.path(), Permissions::from_mode(0o2755)).unwrap();
            store.create_work(&work).unwrap();
            assert_eq!(mode(work.path()) & 0o7777, 0o2000 | folder, "an inherited group stays");
            fs::write(work.log(), "text").unwrap();
            let object = store.object(store.keep_log(&work.log()).unwrap().unwrap());
            assert_eq!(mode(&object) & 0o777, log, "{cache:o}");
        }
    }
}
