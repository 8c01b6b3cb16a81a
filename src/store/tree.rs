//! The content of a folder as a sorted list of its files, with sizes and digests. Independent of stages.

use std::{io, path::Path};

use imp_stages::contract::paths::stays_inside;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    digest::Digest,
    error::{Result, StoreError},
};

/// A file in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TreeFile {
    /// Relative to the folder, with `/` as separator.
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) digest: Digest,
}

/// The files of a folder, sorted by path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree(pub(super) Vec<TreeFile>);

/// A tree by digest, with the number and total size of its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TreeRef {
    /// BLAKE3 of the listing.
    pub(crate) digest: Digest,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

impl Tree {
    /// Reads and hashes every file below `folder`, on all cores.
    ///
    /// # Errors
    /// On anything that is neither a file nor a folder, and on names that are not UTF-8.
    pub(super) fn hash(folder: &Path) -> Result<Self> {
        let mut files = list(folder)?
            .into_par_iter()
            .map(|path| {
                let full = folder.join(&path);
                let (digest, size) = hash_file(&full)?;
                Ok(TreeFile { path, size, digest })
            })
            .collect::<Result<Vec<_>>>()?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(Self(files))
    }

    /// One line per file: `digest size path`.
    pub(super) fn listing(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for file in &self.0 {
            let _ = writeln!(text, "{} {} {}", file.digest, file.size, file.path);
        }
        text
    }

    /// Reads a listing exactly as [`Self::listing`] writes it. `None` if it is not valid.
    pub(super) fn parse(listing: &str) -> Option<Self> {
        // Not `lines`, which drops a `\r` at the end of a name.
        listing
            .split_inclusive('\n')
            .map(|line| {
                let mut parts = line.strip_suffix('\n')?.splitn(3, ' ');
                let digest = Digest::from_hex(parts.next()?)?;
                let size = parts.next()?.parse().ok()?;
                Some(TreeFile { path: parts.next()?.into(), size, digest })
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
            // Paths become those of files. Other spellings of numbers would be other bytes for the same tree.
            .filter(|tree| {
                tree.0.iter().all(|file| !file.path.is_empty() && stays_inside(&file.path)) && tree.listing() == listing
            })
    }

    pub(super) fn reference(&self) -> TreeRef {
        TreeRef {
            digest: Digest::of(self.listing().as_bytes()),
            files: self.0.len() as u64,
            bytes: self.0.iter().map(|file| file.size).sum(),
        }
    }
}

/// Whether a file has other content than this. One that this process can't open has not, as far as it knows: others may read it.
pub(super) fn differs(path: &Path, digest: Digest) -> bool {
    use rustix::io::Errno;
    match hash_file(path) {
        Ok((content, _)) => content != digest,
        Err(StoreError::Io { source, .. }) => ![Errno::ACCESS, Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::STALE]
            .iter()
            .any(|errno| source.raw_os_error() == Some(errno.raw_os_error())),
        Err(_) => true,
    }
}

/// The relative paths of all files below `folder`. Links are followed, so a folder of links is valid data.
pub(super) fn list(folder: &Path) -> Result<Vec<String>> {
    list_but(folder, |_| false)
}

/// [`list`] without the files and folders that are `left_out`, by their relative paths. They are not looked at.
pub(super) fn list_but(folder: &Path, left_out: impl Fn(&Path) -> bool) -> Result<Vec<String>> {
    let is_left_out = |path: &Path| path.strip_prefix(folder).is_ok_and(&left_out);
    let refused = |path: &Path, what: &str| StoreError::Refused { path: path.to_path_buf(), what: what.into() };
    let mut files = Vec::new();
    let entries = walkdir::WalkDir::new(folder).follow_links(true).into_iter();
    for entry in entries.filter_entry(|entry| !is_left_out(entry.path())) {
        if entry.as_ref().is_err_and(|error| error.path().is_some_and(is_left_out)) {
            continue;
        }
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_path_buf();
            match error.loop_ancestor() {
                Some(above) => {
                    let what = format!("this link leads back to {}: remove the link", above.display());
                    StoreError::Refused { path, what }
                }
                None if path.is_symlink() && !path.exists() => {
                    let what = "this link points to nothing: remove it, or restore its target".into();
                    StoreError::Refused { path, what }
                }
                None => StoreError::Io { path, source: error.into_io_error().unwrap_or(io::ErrorKind::Other.into()) },
            }
        })?;
        if entry.file_type().is_dir() {
            continue;
        }
        if !entry.file_type().is_file() {
            return Err(refused(entry.path(), "this is neither a file nor a folder: leave it out"));
        }
        let relative = entry.path().strip_prefix(folder).unwrap_or(entry.path());
        files.push(portable_name(folder, relative)?.to_string());
    }
    Ok(files)
}

/// The name of a file in `folder`, if a listing can hold it and every terminal can show it.
#[expect(clippy::unnecessary_debug_formatting, reason = "shows what a terminal can't")]
pub(super) fn portable_name<'a>(folder: &Path, name: &'a Path) -> Result<&'a str> {
    name.to_str().filter(|name| !name.contains(char::is_control)).ok_or_else(|| {
        let what = format!("the file name {name:?} must be UTF-8 without control characters: rename the file");
        StoreError::Refused { path: folder.to_path_buf(), what }
    })
}

/// The digest and size of a file.
pub(super) fn hash_file(path: &Path) -> Result<(Digest, u64)> {
    /// Files of at least this size are hashed on all cores.
    const LARGE: u64 = 1 << 20;
    let mut hasher = blake3::Hasher::new();
    let size = path.metadata().map_err(StoreError::io(path))?.len();
    if size >= LARGE { hasher.update_mmap_rayon(path) } else { hasher.update_mmap(path) }
        .map_err(StoreError::io(path))?;
    let size = hasher.count();
    Ok((hasher.finalize().into(), size))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{ffi::OsStr, fs, os::unix::ffi::OsStrExt};

    use super::*;

    #[test]
    fn what_is_left_out_is_not_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path(".git")).unwrap();
        for name in ["a", ".git/config"] {
            fs::write(path(name), "x").unwrap();
        }
        // As an editor leaves it, and a socket in a repository.
        std::os::unix::fs::symlink("me@host.1", path(".#a")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path(".git/socket")).unwrap();
        assert!(list(folder.path()).is_err());
        assert_eq!(
            list_but(folder.path(), |relative| relative.starts_with(".git") || relative == Path::new(".#a")).unwrap(),
            ["a"]
        );
    }

    #[test]
    fn a_listing_is_read_as_it_was_written() {
        let file = |path: &str| TreeFile { path: path.into(), size: 1, digest: Digest::of(path.as_bytes()) };
        for names in [vec![], vec!["a.txt\r", "b c"], vec!["a\u{b}b", "\u{2028}", " "]] {
            let tree = Tree(names.into_iter().map(file).collect());
            assert_eq!(Tree::parse(&tree.listing()), Some(tree.clone()));
        }
        let cut = Tree(vec![file("a.txt")]).listing();
        assert_eq!(Tree::parse(cut.trim_end()), None, "the end is missing");
    }

    #[test]
    fn a_listing_that_nobody_has_written_is_refused() {
        let digest = Digest::of(b"x");
        for line in [
            format!("{digest} 1 ../a"),
            format!("{digest} 1 /etc/passwd"),
            format!("{digest} 1 "),
            format!("{digest} +1 a"),
            format!("{digest} 01 a"),
            format!("{} 1 a", digest.hex().to_uppercase()),
        ] {
            assert_eq!(Tree::parse(&format!("{line}\n")), None, "{line}");
        }
    }

    #[test]
    fn names_that_a_terminal_or_listing_would_change_are_refused() {
        for (name, shown) in
            [(b"a.txt\r".as_slice(), r#""a.txt\r""#), (b"a\nb", r#""a\nb""#), (b"caf\xe9", r#""caf\xE9""#)]
        {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join(OsStr::from_bytes(name)), "x").unwrap();
            let error = Tree::hash(folder.path()).unwrap_err().to_string();
            let here = folder.path().display();
            let expected =
                format!("{here}: the file name {shown} must be UTF-8 without control characters: rename the file");
            assert_eq!(error, expected);
        }
    }
}
