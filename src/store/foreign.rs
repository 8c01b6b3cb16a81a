//! Receipts and lists of files that come from another machine: what has to hold before this store uses them. Independent of where
//! they come from.

use std::collections::HashSet;

use super::{
    Digest, Manifest, Receipt, TreeFile, TreeRef,
    seal::{is_sealed, seal},
    tree::Tree,
};

/// The largest receipt, in bytes.
pub(crate) const LARGEST_RECEIPT: u64 = 4 << 20;
/// The largest list of the files of a result, in bytes.
pub(crate) const LARGEST_LISTING: u64 = 256 << 20;
/// The largest log, and the largest file of metrics, in bytes.
pub(crate) const LARGEST_SIDE_FILE: u64 = 1 << 30;
/// The largest result, in bytes: 1 PiB.
const LARGEST_RESULT: u64 = 1 << 50;

/// An object that a result needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Need {
    pub(crate) digest: Digest,
    /// In bytes, if it is known.
    pub(crate) size: Option<u64>,
    /// The most bytes that it may have.
    pub(crate) most: u64,
}

impl Need {
    /// The list of the files of a result.
    pub(crate) fn listing(digest: Digest) -> Self {
        Self { digest, size: None, most: LARGEST_LISTING }
    }

    fn file(file: &TreeFile) -> Self {
        Self { digest: file.digest, size: Some(file.size), most: file.size }
    }

    fn side_file(digest: Digest) -> Self {
        Self { digest, size: None, most: LARGEST_SIDE_FILE }
    }
}

impl Receipt {
    /// Reads a receipt from elsewhere that is to be that of `key`. If the manifest of the key is known, it has to be the same. Says
    /// in words what is wrong with it.
    pub(crate) fn from_elsewhere(bytes: &[u8], key: Digest, asked: Option<&Manifest>) -> Result<Self, String> {
        // Old receipts have no checksum; no version that has remote caches writes one without.
        let read = Some(bytes).filter(|bytes| is_sealed(bytes)).and_then(Self::parse);
        let mut receipt = read.ok_or("its receipt is damaged or cut off")?;
        let is_asked = match (receipt.has_own_key(), asked) {
            (false, _) => receipt.manifest.key() == key,
            // Where passwords were left out, the manifest does not give the key. Without them, the one that is asked for is the same.
            (true, Some(asked)) => receipt.key() == key && receipt.manifest == asked.without_secrets(),
            (true, None) => return Err("its receipt leaves out a secret, so that its key can't be checked".into()),
        };
        if !is_asked {
            return Err("its receipt is that of something else".into());
        }
        if receipt.unchecked {
            return Err("its receipt says that something may be missing".into());
        }
        if receipt.output.bytes > LARGEST_RESULT {
            return Err("its receipt names an impossible size".into());
        }
        receipt.origin = None;
        Ok(receipt)
    }

    /// Reads a receipt from elsewhere to count what it names. Nothing is known of its key.
    pub(crate) fn of_others(bytes: &[u8]) -> Option<Self> {
        Some(bytes).filter(|bytes| is_sealed(bytes)).and_then(Self::parse)
    }

    /// The file of the receipt as other machines may have it: without where this machine has it from.
    pub(crate) fn for_others(&self) -> serde_json::Result<Vec<u8>> {
        let mut receipt = self.without_secrets();
        receipt.origin = None;
        seal(&receipt)
    }

    /// The objects that the receipt needs, of which `files` are those of its output.
    pub(crate) fn needs(&self, files: &[TreeFile]) -> Vec<Need> {
        let side_files = [self.log, self.metrics, self.events].into_iter().flatten().map(Need::side_file);
        let mut needs: Vec<Need> = files.iter().map(Need::file).chain(side_files).collect();
        // The list of files comes last: who has it may ask for the files.
        needs.push(Need::listing(self.output.digest));
        let mut seen = HashSet::new();
        needs.retain(|need| seen.insert(need.digest));
        needs
    }
}

/// Reads a list of files to count what it names.
pub(crate) fn parse_listing(bytes: &[u8]) -> Option<Vec<TreeFile>> {
    Tree::parse(std::str::from_utf8(bytes).ok()?).map(|tree| tree.0)
}

/// Reads the list of the files of `output` that came from elsewhere, or says in words what is wrong with it.
pub(crate) fn listing_from_elsewhere(bytes: &[u8], output: &TreeRef) -> Result<Vec<TreeFile>, &'static str> {
    let whole = Some(bytes).filter(|bytes| Digest::of(bytes) == output.digest);
    let text = whole.and_then(|bytes| std::str::from_utf8(bytes).ok());
    let files = text.and_then(Tree::parse).ok_or("its list of files is damaged or cut off")?.0;
    fault_of_listing(&files, output).map_or(Ok(files), Err)
}

/// What is wrong with a list of files, in words.
fn fault_of_listing(files: &[TreeFile], output: &TreeRef) -> Option<&'static str> {
    let bytes = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
    if files.len() as u64 != output.files || bytes != Some(output.bytes) {
        return Some("its list of files has other sizes than its receipt");
    }
    if !files.is_sorted_by(|one, next| one.path < next.path) {
        return Some("its list of files is not in order");
    }
    let names: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    let is_folder = |path: &str| path.match_indices('/').any(|(at, _)| names.contains(&path[..at]));
    let is_odd = |path: &str| {
        let parts = || path.split('/');
        path.contains(char::is_control) || parts().any(|part| matches!(part, "" | "." | "..") || part.len() > 255)
    };
    if files.iter().any(|file| is_odd(&file.path) || is_folder(&file.path)) {
        return Some("its list of files has names that no folder can have");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> TreeFile {
        TreeFile { path: path.into(), size: 1, digest: Digest::of(path.as_bytes()) }
    }

    #[test]
    fn a_list_of_files_from_elsewhere_is_one_that_a_folder_can_have() {
        let output = |files: u64, bytes: u64| TreeRef { digest: Digest::default(), files, bytes };
        let fault = |names: &[&str]| {
            let files: Vec<TreeFile> = names.iter().map(|name| file(name)).collect();
            fault_of_listing(&files, &output(files.len() as u64, files.len() as u64))
        };
        assert_eq!(fault(&["a", "b/c", "b/d"]), None);
        assert_eq!(fault(&[]), None);
        let long = "x".repeat(256);
        for names in [
            &["b", "a"][..],
            &["a", "a"],
            &["a", "a.b", "a/b"],
            &["a\u{1b}[2J"],
            &["a\r"],
            &["a//b"],
            &["a/./b"],
            &[&long],
        ] {
            assert!(fault(names).is_some(), "{names:?}");
        }
        assert!(fault_of_listing(&[file("a")], &output(1, 2)).is_some());
        assert!(fault_of_listing(&[file("a")], &output(2, 1)).is_some());
        let huge = TreeFile { size: u64::MAX, ..file("b") };
        assert!(fault_of_listing(&[file("a"), huge], &output(2, 0)).is_some(), "no overflow");
    }
}
