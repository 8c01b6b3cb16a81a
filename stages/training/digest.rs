//! The hash of a file of a training, which its name has: what is damaged is not what was written. Independent of what is in it.

use std::{fs::File, io::Read, path::Path};

/// Half of the BLAKE3 hash, in hexadecimal digits. Reads the file in parts: a memory map of it would count as memory of the process.
pub(super) fn digest(path: &Path) -> std::io::Result<String> {
    const PART: usize = 1 << 24;
    let (mut file, mut hasher, mut part) = (File::open(path)?, blake3::Hasher::new(), vec![0; PART]);
    loop {
        match file.read(&mut part)? {
            0 => break,
            length => hasher.update_rayon(&part[..length]),
        };
    }
    Ok(hasher.finalize().to_hex()[..32].to_string())
}
