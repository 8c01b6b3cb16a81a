//! Checks everything in the store. Damaged files are reported and removed, so that the next run makes them again.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rayon::prelude::*;
use serde::Serialize;

use super::{
    Digest, Receipt, Store, TreeFile,
    error::{Result, StoreError},
    files::{files, read, remove_all},
    intact::Depth,
    mend::{Flaws, Mended, describe},
    seal::is_sealed,
    stamp::Stamp,
    tree::hash_file,
};

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct VerifyReport {
    pub(crate) objects: usize,
    pub(crate) bytes: u64,
    pub(crate) receipts: usize,
    /// Of these, the ones of older versions, without a checksum: a changed figure in them goes unnoticed.
    pub(crate) unsealed: usize,
    /// Files with wrong content.
    pub(crate) damaged: Vec<PathBuf>,
    /// `pipeline/stage` of the results that the next run makes again.
    pub(crate) lost: BTreeSet<String>,
    /// Trees that were not what their listings say, in words.
    pub(crate) changed: Vec<String>,
    /// Missing objects that were restored from a tree.
    pub(crate) mended: usize,
}

impl VerifyReport {
    /// Whether nothing was wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.lost.is_empty() && self.changed.is_empty() && self.mended == 0
    }
}

impl Store {
    /// Reads all objects, receipts and trees. `progress` is called with bytes done and in total, from any thread.
    pub(crate) fn verify(&self, progress: impl Fn(u64, u64) + Sync) -> Result<VerifyReport> {
        let mut found = VerifyReport::default();
        // Reading takes long and needs no lock. Suspects are checked once more under the lock, when nothing can change.
        let suspects = self.read_objects(&mut found, progress)?;
        let _guard = self.guard_alone()?;
        let _lock = self.mend_lock()?;
        let receipts = self.check_receipts(&mut found)?;
        let bad = self.check_objects(&mut found, suspects)?;
        let mut trees: BTreeSet<Digest> = receipts.iter().map(|receipt| receipt.output.digest).collect();
        trees.extend(self.named_by_digest("trees", 1)?.into_iter().map(|(_, tree)| tree));
        for tree in trees {
            let mended = self.check_tree(tree, &bad, &mut found)?;
            if let Some(mended) = mended {
                found.lost.extend(mended.removed.clone());
                found.changed.push(format!("{}: {mended}", self.relative(&self.tree_path(tree)).display()));
            }
        }
        Ok(found)
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_path_buf()
    }

    /// Returns the valid receipts, and removes the others.
    fn check_receipts(&self, found: &mut VerifyReport) -> Result<Vec<Receipt>> {
        let mut receipts = Vec::new();
        for path in files(&self.root.join("receipts")) {
            found.receipts += 1;
            let bytes = read(&path).map_err(StoreError::io(&path))?;
            match Receipt::parse(&bytes).filter(|receipt| self.receipt_path(receipt.key()) == path) {
                Some(receipt) => {
                    found.unsealed += usize::from(!is_sealed(&bytes));
                    receipts.push(receipt);
                }
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
                let damaged = is_damaged(path, *digest);
                progress(done.fetch_add(**size, Ordering::Relaxed) + **size, total);
                damaged
            })
            .map(|(object, _)| object.clone())
            .collect();
        (found.objects, found.bytes) = (objects.len(), total);
        Ok(bad)
    }

    /// Removes those suspects that still exist and are damaged.
    fn check_objects(&self, found: &mut VerifyReport, suspects: Vec<(PathBuf, Digest)>) -> Result<HashSet<Digest>> {
        let is_bad = |(path, digest): &(PathBuf, Digest)| path.symlink_metadata().is_ok() && is_damaged(path, *digest);
        let bad: Vec<(PathBuf, Digest)> = suspects.into_iter().filter(is_bad).collect();
        bad.iter().try_for_each(|(path, _)| self.remove_damaged(path, found))?;
        Ok(bad.into_iter().map(|(_, digest)| digest).collect())
    }

    /// Compares a tree with its listing, and puts it right. Returns what was wrong with it. An object that is missing is taken
    /// from the tree if it is there.
    fn check_tree(&self, tree: Digest, bad: &HashSet<Digest>, found: &mut VerifyReport) -> Result<Option<Mended>> {
        let folder = self.tree_path(tree);
        let Ok(listing) = self.tree(tree) else {
            let what = "its list of files is gone".to_string();
            return self.put_right(tree, &[tree], Flaws { what, until: None }, None).map(Some);
        };
        let mut lost = Vec::new();
        for file in listing.iter().filter(|file| bad.contains(&file.digest) || !self.object(file.digest).is_file()) {
            let path = folder.join(&file.path);
            // The files of a tree are the objects themselves, or copies on a disk without hard links.
            if hash_file(&path).is_ok_and(|(content, _)| content == file.digest) {
                self.add_file(&path, file.digest)?;
                found.mended += 1;
            } else {
                lost.push(file);
            }
        }
        if !lost.is_empty() {
            let what = format!("{} is damaged or missing", lost[0].path);
            let digests: Vec<Digest> = lost.iter().map(|file| file.digest).collect();
            let until = self.seen_until(tree, &listing, &lost);
            return self.put_right(tree, &digests, Flaws { what, until }, None).map(Some);
        }
        if !folder.is_dir() {
            return Ok(None);
        }
        let inspection = self.inspect(tree, &listing, Depth::Read);
        if inspection.flaws.is_empty() {
            // Without this note, the next stage that needs the tree reads it again.
            let _ = self.note_intact(tree, &inspection);
            return Ok(None);
        }
        let until = self.intact_until(tree, &inspection.flaws);
        self.put_right(tree, &[], Flaws { what: describe(&inspection.flaws), until }, None).map(Some)
    }

    /// Until when a tree was intact for certain, if the stamps of all `lost` files show that they have changed since.
    fn seen_until(&self, tree: Digest, listing: &[TreeFile], lost: &[&TreeFile]) -> Option<u64> {
        let known = self.known_files(tree).filter(|known| known.len() == listing.len())?;
        let folder = self.tree_path(tree);
        let has_changed = |(file, stamp): (&TreeFile, &Stamp)| {
            !lost.iter().any(|lost| lost.path == file.path) || Stamp::at(&folder.join(&file.path)) != Some(*stamp)
        };
        listing.iter().zip(&known).all(has_changed).then(|| self.known_intact(tree)).flatten()
    }

    fn remove_damaged(&self, path: &Path, found: &mut VerifyReport) -> Result<()> {
        remove_all(path)?;
        found.damaged.push(self.relative(path));
        Ok(())
    }
}

/// Whether the content of an object is not what its name says. Someone else's log, which only they may read, is not damaged.
fn is_damaged(path: &Path, digest: Digest) -> bool {
    match hash_file(path) {
        Ok((content, _)) => content != digest,
        Err(StoreError::Io { source, .. }) => source.kind() != io::ErrorKind::PermissionDenied,
        Err(_) => true,
    }
}
