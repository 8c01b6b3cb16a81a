//! Writes files atomically, and tensors into them: by pieces, on all cores, each piece at its place, so that memory does not grow
//! with the size of a tensor or of a model. Equal tensors give equal bytes. Independent of the files' formats.

use std::{
    fs::File,
    io::{BufWriter, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::format::Encoded;
use crate::error::{ModelError, Result};

/// A tensor with the place of each of its parts in the file.
pub(crate) struct Placed<'a> {
    pub(crate) tensor: Encoded<'a>,
    /// In bytes from the beginning of the file, in the order of [`Encoded::parts`].
    pub(crate) offsets: Vec<u64>,
}

/// Writes `head` and the tensors, each at its place, which follow in a file of `size` bytes. What lies between is zero.
pub(crate) fn write_placed(path: &Path, head: &[u8], size: u64, tensors: &[Placed<'_>]) -> Result<()> {
    write_with(path, |file| {
        file.set_len(size).and_then(|()| file.write_all_at(head, 0)).map_err(ModelError::io(path))?;
        let pieces: Vec<_> =
            tensors.iter().flat_map(|placed| placed.tensor.tensor.pieces().map(move |rows| (placed, rows))).collect();
        // The error of the first piece, whichever piece fails first in time.
        let failed = pieces.into_par_iter().find_map_first(|(placed, rows)| {
            let Placed { tensor, offsets } = placed;
            let values = tensor.tensor.piece(rows.clone());
            let bytes = match tensor.encode(&values) {
                Ok(bytes) => bytes,
                Err(overflow) => return Some(overflow.error(path, &tensor.tensor.name)),
            };
            drop(values);
            let parts = tensor.parts();
            let mut places = parts.iter().zip(offsets).zip(bytes);
            places.find_map(|((part, offset), bytes)| {
                if bytes.len() != part.row * rows.len() {
                    let message = format!("the size of the tensor `{}` does not match its shape", part.name);
                    return Some(ModelError::file(path, message));
                }
                let written = file.write_all_at(&bytes, offset + (rows.start * part.row) as u64);
                written.map_err(ModelError::io(path)).err()
            })
        });
        failed.map_or(Ok(()), Err)
    })
}

/// Writes a whole file.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| {
        let mut file = BufWriter::new(file);
        file.write_all(bytes).and_then(|()| file.flush()).map_err(ModelError::io(path))
    })
}

/// Writes the file atomically: to a temporary file in the same folder, which is synced and then renamed.
fn write_with(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let io = || ModelError::io(path);
    let whole = || {
        let file = File::create(&part).map_err(io())?;
        write(&file)?;
        file.sync_all().map_err(io())?;
        std::fs::rename(&part, path).map_err(io())
    };
    let written = whole();
    if matches!(written, Err(ModelError::Overflow { .. })) {
        // What was written so far is of no use; if it can't be removed, the work folder is.
        let _ = std::fs::remove_file(&part);
    }
    written
}
