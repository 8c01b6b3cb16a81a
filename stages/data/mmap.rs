//! Read-only memory maps: the only `unsafe` code of the stages. Independent of what the files hold.
#![allow(unsafe_code)]

use std::{fs::File, io, path::Path};

use memmap2::Mmap;

/// Maps a whole file; an empty one gives an empty map.
pub(crate) fn map_file(path: &Path) -> io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: it would be undefined behaviour if the file shrank or changed while it is mapped. Inputs of stages are in
    // the content-addressed store, whose files are written once, renamed into place and read-only from then on.
    unsafe { Mmap::map(&file) }
}
