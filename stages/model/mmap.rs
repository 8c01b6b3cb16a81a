//! Memory-maps files that do not change. Independent of their content.

use std::{fs::File, ops::Range};

use memmap2::{Mmap, UncheckedAdvice};

/// A whole file in memory.
pub(crate) struct Map(Mmap);

impl Map {
    /// Maps the whole file.
    #[allow(unsafe_code)]
    pub(crate) fn of(file: &File) -> std::io::Result<Self> {
        // SAFETY: changing a mapped file is undefined behaviour. Model files of stages are in the content-addressed store, whose
        // files are written once, renamed into place and read-only from then on. `imp-flow ask` also reads folders of its user's,
        // who must not change them meanwhile.
        unsafe { Mmap::map(file) }.map(Self)
    }

    /// Takes the pages of `range` out of this process's memory. The system may keep them; whoever needs them again gets them
    /// from there, or from the disk.
    #[allow(unsafe_code)]
    pub(crate) fn release(&self, range: &Range<usize>) {
        if range.end > self.0.len() || range.is_empty() {
            return;
        }
        // SAFETY: the mapping is of a file and never written to, so that a page has the same content whenever it is read again.
        // A system that refuses keeps the pages, which costs memory only.
        let _ = unsafe { self.0.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
