//! Whether the folder of a tree is its listing: the same names, and files with the listed content, neither more nor fewer.
//! Only looks; `mend.rs` puts right what is wrong.
//!
//! The files of a tree are read-only, but its folders are not: a folder without write permission would keep its owner from
//! deleting the cache with `rm -rf`. The times of the folders show instead that entries were added, removed or replaced, and the
//! change times of files show everything that was written into them.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

use rayon::prelude::*;

use super::{
    Digest, Store, TreeFile,
    checked::{Folders, relative},
    error::Result,
    stamp::Stamp,
    tree::differs,
};

/// How much to believe of a file that is a link to its object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// That it has the object's content. Shows that entries were added, removed or replaced.
    Links,
    /// That it has the listed content: it was read a moment ago.
    Fresh,
    /// That a link to its object has the right content: the object was read a moment ago. Other files are read.
    Read,
    /// Nothing: a file whose stamp has changed since it was last checked is read. Shows also what was written into a file.
    Content,
}

/// A difference between a folder and its listing.
#[derive(Debug, Clone)]
pub(super) struct Flaw {
    /// Its path in the tree.
    pub(super) path: String,
    /// What happened to it: `was added`.
    what: &'static str,
    /// When it happened, as far as the disk tells, in seconds since 1970; never too late.
    pub(super) since: u64,
    /// The content that the file should have. `None` if it should not exist.
    pub(super) wanted: Option<Digest>,
}

/// What was found in the folder of a tree.
#[derive(Debug, Default)]
pub(super) struct Inspection {
    pub(super) flaws: Vec<Flaw>,
    folders: Folders,
    /// `None` if some files were not read and had no known stamp.
    files: Option<Vec<Stamp>>,
}

/// A file that was found.
enum Content {
    Right,
    /// It is a link to its object, which was not read.
    Linked,
    Wrong,
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.path, self.what)
    }
}

impl Store {
    /// Compares the folder of a tree with its listing.
    pub(super) fn inspect(&self, tree: Digest, listing: &[TreeFile], depth: Depth) -> Inspection {
        let folder = self.path("trees", tree);
        let listed: HashMap<&str, usize> = listing.iter().enumerate().map(|(at, file)| (&*file.path, at)).collect();
        let mut found: Vec<Option<Stamp>> = vec![None; listing.len()];
        let mut inspection = Inspection::default();
        for entry in walkdir::WalkDir::new(&folder) {
            let Ok(entry) = entry else { continue };
            let (name, Some(stamp)) = (relative(&folder, entry.path()), Stamp::at(entry.path())) else { continue };
            match listed.get(&*name) {
                _ if entry.file_type().is_dir() && !listed.contains_key(&*name) => {
                    inspection.folders.push((name, stamp));
                }
                Some(at) if entry.file_type().is_file() => found[*at] = Some(stamp),
                Some(at) => {
                    let wanted = Some(listing[*at].digest);
                    let flaw =
                        Flaw { path: name, what: "is not a regular file any more", since: stamp.earliest(), wanted };
                    inspection.flaws.push(flaw);
                }
                None => {
                    let flaw = Flaw { path: name, what: "was added", since: stamp.earliest(), wanted: None };
                    inspection.flaws.push(flaw);
                }
            }
        }
        let known = self.known_files(tree).filter(|known| known.len() == listing.len());
        let checked: Vec<Option<Content>> = (0..listing.len())
            .into_par_iter()
            .map(|at| {
                let stamp = found[at]?;
                // A failing disk changes content without changing stamps, so a thorough check does not believe them.
                let believed = known.as_ref().filter(|_| depth != Depth::Read);
                if believed.is_some_and(|known| known[at] == stamp) {
                    return Some(Content::Right);
                }
                Some(self.content(&folder, &listing[at], &stamp, depth))
            })
            .collect();
        judge(&folder, listing, &found, &checked, &mut inspection);
        inspection
    }

    fn content(&self, folder: &Path, file: &TreeFile, stamp: &Stamp, depth: Depth) -> Content {
        if stamp.size != file.size {
            return Content::Wrong;
        }
        let is_linked = || Stamp::at(&self.object(file.digest)).is_some_and(|object| object.is_same_file(stamp));
        match depth {
            Depth::Fresh => return Content::Right,
            Depth::Read if is_linked() => return Content::Right,
            Depth::Links if is_linked() => return Content::Linked,
            Depth::Read | Depth::Links | Depth::Content => {}
        }
        if differs(&folder.join(&file.path), file.digest) { Content::Wrong } else { Content::Right }
    }

    /// Notes that a tree was found intact.
    pub(super) fn note_intact(&self, tree: Digest, inspection: &Inspection) -> Result<()> {
        if !self.has_same_folders(tree) {
            self.set_folders(tree, &inspection.folders)?;
        }
        match &inspection.files {
            Some(files) if self.known_files(tree).as_ref() != Some(files) => self.set_files(tree, files),
            _ => Ok(()),
        }
    }
}

/// Adds the files that are missing or have other content, and the stamps of the files if all have been read.
fn judge(
    folder: &Path,
    listing: &[TreeFile],
    found: &[Option<Stamp>],
    checked: &[Option<Content>],
    inspection: &mut Inspection,
) {
    let known: HashSet<String> = inspection.flaws.iter().map(|flaw| flaw.path.clone()).collect();
    for (at, file) in listing.iter().enumerate() {
        let (what, since) = match (&checked[at], &found[at]) {
            (Some(Content::Wrong), Some(stamp)) => ("has other content", stamp.earliest()),
            (None, _) if !known.contains(&file.path) => ("is missing", last_change(folder, &file.path)),
            _ => continue,
        };
        inspection.flaws.push(Flaw { path: file.path.clone(), what, since, wanted: Some(file.digest) });
    }
    let read = |content: &Option<Content>| matches!(content, Some(Content::Right));
    if inspection.flaws.is_empty() && checked.iter().all(read) {
        inspection.files = found.iter().copied().collect();
    }
    // For messages and tests, not in the order of the disk.
    inspection.flaws.sort_by(|a, b| a.path.cmp(&b.path));
}

/// When the nearest folder above `path` that still exists was changed, in seconds since 1970; 0 if none exists.
fn last_change(folder: &Path, path: &str) -> u64 {
    let full = folder.join(path);
    let above = full.ancestors().skip(1).take_while(|above| above.starts_with(folder));
    above.filter_map(Stamp::at).map(|stamp| stamp.earliest()).next().unwrap_or_default()
}
