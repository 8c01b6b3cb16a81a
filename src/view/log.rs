//! The end of a stage's log.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use serde::Serialize;

/// The end of a log.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct LogView {
    /// The size of the whole log in bytes.
    pub(crate) bytes: u64,
    /// Its last whole lines. Bytes that are no text are replaced.
    pub(crate) tail: String,
    /// Whether lines before them are left out.
    pub(crate) cut: bool,
}

/// The last lines of a log, at most `most` bytes.
pub(super) fn tail(path: &Path, most: usize) -> io::Result<LogView> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    let start = bytes.saturating_sub(most as u64);
    file.seek(SeekFrom::Start(start))?;
    let mut read = Vec::new();
    file.take(most as u64).read_to_end(&mut read)?;
    let text = String::from_utf8_lossy(&read);
    let tail = match (start, text.split_once('\n')) {
        (0, _) => &text,
        // The first line is cut, unless there is no other.
        (_, Some((_, rest))) if !rest.is_empty() => rest,
        _ => &*text,
    };
    Ok(LogView { bytes, tail: tail.trim_end().into(), cut: start > 0 })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_tail_has_whole_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "one\ntwo\nthree\n").unwrap();
        let view = |most| tail(&path, most).map(|view| (view.tail, view.cut)).unwrap();
        assert_eq!(view(100), ("one\ntwo\nthree".into(), false));
        assert_eq!(view(9), ("three".into(), true));
        std::fs::write(&path, "\u{e4}".repeat(9)).unwrap();
        assert_eq!(view(3), ("\u{fffd}\u{e4}".into(), true));
    }
}
