//! Checks everything in the store. Damaged files are reported and removed, so that the next run makes them again.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    Digest, Receipt, Store, TreeFile,
    error::{Result, StoreError},
    files::{files, remove_all},
    tree::hash_file,
};

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct VerifyReport {
    pub(crate) objects: usize,
    pub(crate) bytes: u64,
    pub(crate) receipts: usize,
    /// Files with wrong content.
    pub(crate) damaged: Vec<PathBuf>,
    /// `pipeline/stage` of the results that the next run makes again.
    pub(crate) lost: BTreeSet<String>,
    /// Missing objects that were restored from a tree.
    pub(crate) mended: usize,
}

impl Store {
    /// Reads all objects, receipts and trees. `progress` is called with bytes done and in total, from any thread.
    pub(crate) fn verify(&self, progress: impl Fn(u64, u64) + Sync) -> Result<VerifyReport> {
        let mut found = VerifyReport::default();
        // Reading takes long and needs no lock. Suspects are checked once more under the lock, when nothing can change.
        let suspects = self.read_objects(&mut found, progress)?;
        let _guard = self.guard_alone()?;
        let receipts = self.check_receipts(&mut found)?;
        let bad = self.check_objects(&mut found, suspects)?;
        for receipt in &receipts {
            if !self.check_tree(receipt, &bad, &mut found)? {
                // Otherwise a result that no run needs would be reported each time.
                self.remove_receipt(receipt.manifest.key())?;
                found.lost.insert(format!("{}/{}", receipt.pipeline, receipt.stage));
            }
        }
        Ok(found)
    }

    /// Returns the valid receipts, and removes the others.
    fn check_receipts(&self, found: &mut VerifyReport) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for path in files(&self.root.join("receipts")) {
            found.receipts += 1;
            let bytes = fs::read(&path).map_err(StoreError::io(&path))?;
            let receipt = serde_json::from_slice(&bytes).ok();
            match receipt.filter(|receipt: &Receipt| self.receipt_path(receipt.manifest.key()) == path) {
                Some(receipt) => receipts.push(receipt),
                None => self.remove_damaged(&path, found)?,
            }
        }
        Ok(receipts)
    }

    /// Hashes all objects on all cores. Returns those whose content does not match their name.
    fn read_objects(
        &self,
        found: &mut VerifyReport,
        progress: impl Fn(u64, u64) + Sync,
    ) -> Result<Vec<(PathBuf, Digest)>> {
        let objects = self.named_by_digest("objects", 1)?;
        let sizes: Vec<u64> = objects.iter().map(|(path, _)| path.metadata().map_or(0, |data| data.len())).collect();
        let (total, done) = (sizes.iter().sum(), AtomicU64::new(0));
        let bad = objects
            .par_iter()
            .zip(&sizes)
            .filter(|((path, digest), size)| {
                let right = hash_file(path).is_ok_and(|(content, _)| content == *digest);
                progress(done.fetch_add(**size, Ordering::Relaxed) + **size, total);
                !right
            })
            .map(|(object, _)| object.clone())
            .collect();
        (found.objects, found.bytes) = (objects.len(), total);
        Ok(bad)
    }

    /// Removes those suspects that still exist and are damaged.
    fn check_objects(&self, found: &mut VerifyReport, suspects: Vec<(PathBuf, Digest)>) -> Result<HashSet<Digest>> {
        let is_bad = |(path, digest): &(PathBuf, Digest)| {
            path.symlink_metadata().is_ok() && !hash_file(path).is_ok_and(|(content, _)| content == *digest)
        };
        let bad: Vec<(PathBuf, Digest)> = suspects.into_iter().filter(is_bad).collect();
        bad.iter().try_for_each(|(path, _)| self.remove_damaged(path, found))?;
        Ok(bad.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Whether the tree of a receipt is complete or can be recreated from its objects. Removes its folder if it is wrong.
    fn check_tree(&self, receipt: &Receipt, bad: &HashSet<Digest>, found: &mut VerifyReport) -> Result<bool> {
        let folder = self.path("trees", receipt.output.digest);
        let Ok(listing) = self.tree(receipt.output.digest) else {
            remove_all(&folder)?;
            return Ok(false);
        };
        let mut whole = true;
        for file in &listing {
            if bad.contains(&file.digest) || !self.has(&file.digest) {
                let path = folder.join(&file.path);
                // The files of a tree are the objects themselves, or copies on a disk without hard links.
                if hash_file(&path).is_ok_and(|(content, _)| content == file.digest) {
                    self.add_file(&path, file.digest)?;
                    found.mended += 1;
                } else {
                    whole = false;
                }
            }
        }
        if folder.is_dir() && (!whole || !listing.iter().all(|file| self.is_object(&folder, file))) {
            remove_all(&folder)?;
        }
        Ok(whole)
    }

    fn has(&self, digest: &Digest) -> bool {
        self.object(*digest).is_file()
    }

    /// Whether a file of a tree is the object itself, which was already read, or has the same content.
    fn is_object(&self, folder: &Path, file: &TreeFile) -> bool {
        use std::os::unix::fs::MetadataExt;
        let path = folder.join(&file.path);
        let (Ok(found), Ok(object)) = (path.metadata(), self.object(file.digest).metadata()) else { return false };
        found.ino() == object.ino() || hash_file(&path).is_ok_and(|(content, _)| content == file.digest)
    }

    fn remove_damaged(&self, path: &Path, found: &mut VerifyReport) -> Result<()> {
        remove_all(path)?;
        found.damaged.push(path.strip_prefix(&self.root).unwrap_or(path).to_path_buf());
        Ok(())
    }
}
