//! Memory-maps files that do not change. Independent of their content.

use std::fs::File;

use memmap2::Mmap;

/// Maps the whole file.
#[allow(unsafe_code)]
pub(crate) fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: changing a mapped file is undefined behaviour. Model files are in the content-addressed store, whose
    // files are written once, renamed into place and read-only from then on.
    unsafe { Mmap::map(file) }
}
