//! Writes files atomically, and tensors into them: by pieces, on all cores, each piece at its place, so that memory does not grow
//! with the size of a tensor or of a model. Equal tensors give equal bytes. Independent of the files' formats.

use std::{
    fs::File,
    io::Write,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use rayon::prelude::*;

use super::format::Encoded;
use crate::error::{ModelError, Result};

/// A file to write: what it begins with, and its size in bytes.
pub(crate) struct Target {
    pub(crate) path: PathBuf,
    pub(crate) head: Vec<u8>,
    pub(crate) size: u64,
}

/// A place in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Which of the files.
    pub(crate) file: usize,
    /// In bytes from the beginning of the file.
    pub(crate) offset: u64,
}

/// A tensor with the place of each of its parts.
pub(crate) struct Placed<'a> {
    pub(crate) tensor: Encoded<'a>,
    /// In the order of [`Encoded::parts`].
    pub(crate) spots: Vec<Spot>,
}

/// Writes the tensors into the files, each part at its place. What lies between is zero. All files appear, or none.
pub(crate) fn write_files(targets: &[Target], tensors: &[Placed<'_>]) -> Result<()> {
    let parts: Vec<PathBuf> = targets.iter().map(|target| part_of(&target.path)).collect();
    let written = fill(targets, &parts, tensors);
    if matches!(written, Err(ModelError::Overflow { .. })) {
        // What was written so far is of no use; if it can't be removed, the work folder is.
        for part in &parts {
            let _ = std::fs::remove_file(part);
        }
    }
    written
}

fn fill(targets: &[Target], parts: &[PathBuf], tensors: &[Placed<'_>]) -> Result<()> {
    let open = |(target, part): (&Target, &PathBuf)| {
        let file = File::create(part).map_err(ModelError::io(&target.path))?;
        file.set_len(target.size)
            .and_then(|()| file.write_all_at(&target.head, 0))
            .map_err(ModelError::io(&target.path))?;
        Ok(file)
    };
    let files: Vec<File> = targets.iter().zip(parts).map(open).collect::<Result<_>>()?;
    let pieces: Vec<_> =
        tensors.iter().flat_map(|placed| placed.tensor.tensor.pieces().map(move |rows| (placed, rows))).collect();
    // The error of the first piece, whichever piece fails first in time.
    let failed = pieces.into_par_iter().find_map_first(|(placed, rows)| put(targets, &files, placed, rows).err());
    failed.map_or(Ok(()), Err)?;
    for ((target, part), file) in targets.iter().zip(parts).zip(&files) {
        file.sync_all().map_err(ModelError::io(&target.path))?;
        std::fs::rename(part, &target.path).map_err(ModelError::io(&target.path))?;
    }
    Ok(())
}

/// Writes some rows of a tensor.
fn put(targets: &[Target], files: &[File], placed: &Placed<'_>, rows: Range<usize>) -> Result<()> {
    let Placed { tensor, spots } = placed;
    let path = |spot: &Spot| targets[spot.file].path.as_path();
    let values = tensor.tensor.piece(rows.clone());
    let bytes = tensor.encode(&values).map_err(|overflow| overflow.error(path(&spots[0]), &tensor.tensor.name))?;
    drop(values);
    for ((part, spot), bytes) in tensor.parts().iter().zip(spots).zip(bytes) {
        if bytes.len() != part.row * rows.len() {
            let message = format!("the size of the tensor `{}` does not match its shape", part.name);
            return Err(ModelError::file(path(spot), message));
        }
        let start = spot.offset + (rows.start * part.row) as u64;
        files[spot.file].write_all_at(&bytes, start).map_err(ModelError::io(path(spot)))?;
    }
    Ok(())
}

/// The name of a file while it is written.
fn part_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// Writes a whole file, atomically: to a temporary file in the same folder, which is synced and then renamed.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = part_of(path);
    let whole = || {
        let mut file = File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    whole().map_err(ModelError::io(path))
}
