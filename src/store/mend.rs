//! Puts right what was changed in the folders of trees, and takes out what was made from a changed one.
//! Independent of who asks: a hit, a stage that starts, or `cache verify`.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use super::{
    Digest, Store, TreeFile, disk,
    error::{Result, StoreError},
    files::{is_folder, open_lock, remove_all},
    intact::{Depth, Flaw},
    tree::{differs, hash_file},
};

#[cfg(test)]
mod tests;

/// How the name of a folder ends that was changed and then replaced. Garbage collection removes it.
pub(super) const SET_ASIDE: &str = "damaged";

/// The folder of a tree.
#[derive(Debug)]
pub(crate) enum TreeFolder {
    Intact(PathBuf),
    /// It was changed and is right again.
    Restored(PathBuf, Mended),
    /// Its content is gone. Without a report, it never was complete.
    Lost(Option<Mended>),
}

/// What was wrong with a tree, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mended {
    /// The first differences, in words.
    pub(crate) what: String,
    restored: bool,
    /// Where the changed folder is now.
    set_aside: Option<PathBuf>,
    /// `pipeline/stage` of the results that were removed: those with this content if it is gone, and those made from it.
    pub(crate) removed: BTreeSet<String>,
    /// The last time at which the tree was known to be intact, in seconds since 1970.
    pub(crate) until: Option<u64>,
}

impl fmt::Display for Mended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        f.write_str(if self.restored { "; restored from the cache" } else { "; it has to be made again" })?;
        if let Some(path) = &self.set_aside {
            write!(f, "; the changed folder is {} until `imp-flow cache gc`", path.display())?;
        }
        if !self.removed.is_empty() {
            let names: Vec<&str> = self.removed.iter().map(String::as_str).collect();
            write!(f, "; removed results that depend on the change: {}", names.join(", "))?;
        }
        Ok(())
    }
}

impl TreeFolder {
    /// The folder, if there is one, and what was put right.
    pub(crate) fn into_parts(self) -> (Option<PathBuf>, Option<Mended>) {
        match self {
            Self::Intact(folder) => (Some(folder), None),
            Self::Restored(folder, mended) => (Some(folder), Some(mended)),
            Self::Lost(mended) => (None, mended),
        }
    }
}

impl Store {
    /// The folder of a tree, recreated from its objects if it does not exist. Looks at its folders only, so that a hit costs
    /// little: a file that was written into is found when a stage needs it, and by [`Store::verify`].
    pub(crate) fn tree_folder(&self, tree: Digest) -> Result<TreeFolder> {
        let folder = self.path("trees", tree);
        if is_folder(&folder) && self.has_same_folders(tree) {
            return Ok(TreeFolder::Intact(folder));
        }
        self.make_right(tree, Depth::Links)
    }

    /// The folder of a tree that a stage is about to read: every file is what its listing says.
    pub(crate) fn input_folder(&self, tree: Digest) -> Result<TreeFolder> {
        self.make_right(tree, Depth::Content)
    }

    /// The path at which [`Store::input_folder`] presents a tree.
    pub(crate) fn tree_path(&self, tree: Digest) -> PathBuf {
        self.path("trees", tree)
    }

    /// Whether a tree is still what its listing says, after a stage has read it until `now`.
    pub(crate) fn is_still_intact(&self, tree: Digest, now: u64) -> bool {
        let Ok(listing) = self.tree(tree) else { return false };
        let found = self.inspect(tree, &listing, Depth::Content);
        if found.flaws.is_empty() {
            // Without these notes the next check takes longer.
            let _ = self.note_intact(tree, &found).and_then(|()| self.set_intact(tree, now));
        }
        found.flaws.is_empty()
    }

    fn make_right(&self, tree: Digest, depth: Depth) -> Result<TreeFolder> {
        let folder = self.path("trees", tree);
        let Ok(listing) = self.tree(tree) else { return Ok(TreeFolder::Lost(None)) };
        let mut mended: Option<Mended> = None;
        // Restoring may bring back a copy of a damaged object, which the second round finds.
        for _ in 0..3 {
            if !is_folder(&folder) && folder.symlink_metadata().is_ok() {
                let what = "its folder is not a folder any more".to_string();
                mended = Some(self.put_right(tree, &[], Flaws { what, until: self.known_intact(tree) }, None)?);
            }
            if !is_folder(&folder) && !self.build_tree(tree, &listing)? {
                return Ok(TreeFolder::Lost(mended));
            }
            let found = self.inspect(tree, &listing, depth);
            if found.flaws.is_empty() {
                let _ = self.note_intact(tree, &found);
                return Ok(match mended {
                    Some(mended) => TreeFolder::Restored(folder, mended),
                    None => TreeFolder::Intact(folder),
                });
            }
            let now = self.mend(tree, &listing, depth, mended.as_ref())?;
            if now.as_ref().is_some_and(|now| !now.restored) {
                return Ok(TreeFolder::Lost(now));
            }
            mended = now.or(mended);
        }
        Ok(TreeFolder::Lost(mended))
    }

    /// Sets a changed folder aside, and takes out the objects that are damaged. `None` if another process was faster.
    fn mend(
        &self,
        tree: Digest,
        listing: &[TreeFile],
        depth: Depth,
        before: Option<&Mended>,
    ) -> Result<Option<Mended>> {
        let _lock = self.mend_lock()?;
        let flaws = self.inspect(tree, listing, depth).flaws;
        if flaws.is_empty() {
            return Ok(None);
        }
        let damaged: Vec<Digest> = flaws
            .iter()
            .filter_map(|flaw| flaw.wanted)
            .filter(|digest| differs(&self.object(*digest), *digest))
            .collect();
        let until = self.intact_until(tree, &flaws);
        self.put_right(tree, &damaged, Flaws { what: describe(&flaws), until }, before).map(Some)
    }

    /// Keeps other processes from replacing the same folder.
    pub(super) fn mend_lock(&self) -> Result<Option<fs::File>> {
        let path = self.root.join("locks").join("mend");
        let lock = open_lock(&path)?;
        lock.as_ref().map_or(Ok(()), disk::lock).map_err(StoreError::io(&path))?;
        Ok(lock)
    }

    /// Whether an object has the content that its name says. One that can't be read has not been seen to.
    pub(super) fn is_whole(&self, digest: Digest) -> bool {
        hash_file(&self.object(digest)).is_ok_and(|(content, _)| content == digest)
    }

    pub(super) fn put_right(
        &self,
        tree: Digest,
        damaged: &[Digest],
        flaws: Flaws,
        before: Option<&Mended>,
    ) -> Result<Mended> {
        let Flaws { what, until } = flaws;
        let mut removed = self.drop_users(tree, until)?;
        if !damaged.is_empty() {
            removed.extend(self.drop_makers(tree)?);
        }
        let set_aside = set_aside(&self.path("trees", tree))?;
        damaged.iter().try_for_each(|digest| self.take_out(*digest))?;
        self.forget_checks(tree);
        removed.extend(before.into_iter().flat_map(|before| before.removed.clone()));
        let set_aside = before.and_then(|before| before.set_aside.clone()).or(set_aside);
        let what = before.map_or(what, |before| before.what.clone());
        Ok(Mended { what, restored: damaged.is_empty(), set_aside, removed, until })
    }

    /// Until when a tree with these `flaws` was intact for certain, in seconds since 1970. `None` if unknown.
    pub(super) fn intact_until(&self, tree: Digest, flaws: &[Flaw]) -> Option<u64> {
        // Every stage that ran on the tree since then would have noted that it was still intact.
        self.known_intact(tree).or_else(|| {
            let changed = flaws.iter().map(|flaw| flaw.since).min()?;
            let makers = self.receipts().filter(|(_, receipt)| receipt.output.digest == tree);
            let made = makers.map(|(_, receipt)| receipt.timing.finished).max()?;
            // A time from before the tree was made says nothing.
            (changed > made).then(|| changed - 1)
        })
    }

    /// Removes the receipts and unfinished stages that may have been made from a changed tree: those after `until`.
    /// Returns the stages' names.
    fn drop_users(&self, tree: Digest, until: Option<u64>) -> Result<BTreeSet<String>> {
        let mut dropped = BTreeSet::new();
        for (key, receipt) in self.receipts() {
            let used = receipt.manifest.inputs.values().any(|input| *input == tree);
            if used && until.is_none_or(|until| receipt.timing.finished > until) {
                self.remove_receipt(key)?;
                dropped.insert(receipt.owner());
            }
        }
        let folder = self.path("trees", tree);
        for (_, key) in self.named_by_digest("work", 0)? {
            let work = self.work(key);
            if !self.is_being_made(key) && work.reads(&folder) {
                work.clear_after(until)?;
            }
        }
        Ok(dropped)
    }

    /// Removes the receipts with this content, which is gone. Returns the stages' names.
    fn drop_makers(&self, tree: Digest) -> Result<BTreeSet<String>> {
        let mut dropped = BTreeSet::new();
        for (key, receipt) in self.receipts().filter(|(_, receipt)| receipt.output.digest == tree) {
            self.remove_receipt(key)?;
            dropped.insert(receipt.owner());
        }
        Ok(dropped)
    }

    /// Removes a damaged object. Another process may replace it by a good one at any time, which must stay.
    pub(super) fn take_out(&self, digest: Digest) -> Result<()> {
        let object = self.object(digest);
        let tmp = self.tmp()?;
        let aside = tempfile::TempDir::new_in(&tmp).map_err(StoreError::io(&tmp))?;
        let taken = aside.path().join("object");
        match disk::rename(&object, &taken) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            moved => moved.map_err(StoreError::io(&object))?,
        }
        if !differs(&taken, digest) {
            return disk::rename(&taken, &object).map_err(StoreError::io(&object));
        }
        remove_all(&taken)
    }
}

/// Renames a changed folder, so that nothing that a user wrote into it is lost. Returns its new path, if it existed.
fn set_aside(folder: &Path) -> Result<Option<PathBuf>> {
    let target = folder.with_extension(SET_ASIDE);
    if folder.symlink_metadata().is_err() {
        return Ok(None);
    }
    remove_all(&target)?;
    match disk::rename(folder, &target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        moved => moved.map(|()| Some(target)).map_err(StoreError::io(folder)),
    }
}

/// What is wrong with a tree, in words, and until when it was intact.
pub(super) struct Flaws {
    pub(super) what: String,
    pub(super) until: Option<u64>,
}

/// The first differences, in words.
pub(super) fn describe(flaws: &[Flaw]) -> String {
    const SHOWN: usize = 3;
    let mut texts: Vec<String> = flaws.iter().take(SHOWN).map(ToString::to_string).collect();
    if flaws.len() > SHOWN {
        texts.push(format!("and {} more", flaws.len() - SHOWN));
    }
    texts.join(", ")
}
