//! Read-only memory maps: the one place of the stages with `unsafe`. Does not know what the files hold.
#![allow(unsafe_code)]

use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// Maps a whole file; an empty one gives an empty map.
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: a file that shrinks or changes under a map is undefined behaviour. Inputs of stages lie in the
    // content-addressed store, whose files are written once, renamed into place and read-only from then on.
    unsafe { Mmap::map(&file) }
}
