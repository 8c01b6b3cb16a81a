//! A disk as a power failure leaves it: the operations up to some point, and of every file what was flushed. Names survive in
//! order, as on file systems with a journal. What was written and not flushed is lost.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::Op;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Node {
    Folder,
    /// Its index among the contents. Links have the same.
    File(usize),
}

#[derive(Debug, Clone, Default)]
struct Content {
    written: Vec<u8>,
    flushed: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    names: BTreeMap<PathBuf, Node>,
    contents: Vec<Content>,
}

impl Disk {
    /// What is below `root`, all of it flushed.
    pub(super) fn of(root: &Path) -> Self {
        let mut disk = Self::default();
        let mut inodes = HashMap::new();
        for entry in walkdir::WalkDir::new(root).min_depth(1).into_iter().flatten() {
            let node = if entry.file_type().is_dir() {
                Node::Folder
            } else {
                let inode = entry.metadata().unwrap().ino();
                let bytes = || fs::read(entry.path()).unwrap_or_default();
                Node::File(*inodes.entry(inode).or_insert_with(|| {
                    disk.contents.push(Content { written: bytes(), flushed: bytes() });
                    disk.contents.len() - 1
                }))
            };
            disk.names.insert(entry.path().into(), node);
        }
        disk
    }

    pub(super) fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(path, bytes) => {
                let content = Content { written: bytes.clone(), flushed: Vec::new() };
                if let Some(Node::File(at)) = self.names.get(path) {
                    self.contents[*at] = content;
                } else {
                    self.contents.push(content);
                    self.names.insert(path.clone(), Node::File(self.contents.len() - 1));
                }
            }
            Op::Sync(path) => {
                if let Some(Node::File(at)) = self.names.get(path) {
                    let content = &mut self.contents[*at];
                    content.flushed = content.written.clone();
                }
            }
            Op::SyncAll => self.contents.iter_mut().for_each(|content| content.flushed = content.written.clone()),
            Op::MakeFolder(path) => {
                for above in path.ancestors() {
                    self.names.entry(above.into()).or_insert(Node::Folder);
                }
            }
            Op::Rename(from, to) => {
                let moved = self.take(from);
                self.take(to);
                self.put(moved, from, to);
            }
            Op::Exchange(one, other) => {
                let (first, second) = (self.take(one), self.take(other));
                self.put(first, one, other);
                self.put(second, other, one);
            }
            Op::Link(from, to) => {
                let node = self.names[from];
                self.names.insert(to.clone(), node);
            }
            Op::Remove(path) => drop(self.take(path)),
        }
    }

    /// Removes `path` with everything below it.
    fn take(&mut self, path: &Path) -> Vec<(PathBuf, Node)> {
        let below: Vec<PathBuf> = self.names.keys().filter(|name| name.starts_with(path)).cloned().collect();
        below.into_iter().filter_map(|name| self.names.remove_entry(&name)).collect()
    }

    fn put(&mut self, nodes: Vec<(PathBuf, Node)>, from: &Path, to: &Path) {
        for (name, node) in nodes {
            let rest = name.strip_prefix(from).unwrap();
            let name = if rest.as_os_str().is_empty() { to.into() } else { to.join(rest) };
            self.names.insert(name, node);
        }
    }

    /// Writes what a power failure leaves of what is below `root` to `target`.
    pub(super) fn write_flushed(&self, root: &Path, target: &Path) {
        let mut first: HashMap<usize, PathBuf> = HashMap::new();
        for (name, node) in &self.names {
            let Ok(relative) = name.strip_prefix(root) else { continue };
            let path = target.join(relative);
            match node {
                Node::Folder => fs::create_dir_all(&path).unwrap(),
                Node::File(at) => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    if let Some(link) = first.get(at) {
                        fs::hard_link(link, &path).unwrap();
                    } else {
                        fs::write(&path, &self.contents[*at].flushed).unwrap();
                        first.insert(*at, path);
                    }
                }
            }
        }
    }
}
