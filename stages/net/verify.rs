//! Checks a file's content against expected hashes. Independent of where the file came from.

use std::{
    fmt::Write,
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// An expected hash, in hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Check {
    Sha256(String),
    Blake3(String),
    /// Git's id of a file: the SHA-1 of `blob`, its length and its content.
    GitBlob(String),
}

impl Check {
    fn name(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "SHA-256",
            Self::Blake3(_) => "BLAKE3",
            Self::GitBlob(_) => "git id",
        }
    }

    fn expected(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::Blake3(hex) | Self::GitBlob(hex) => hex,
        }
    }

    fn of(&self, path: &Path) -> io::Result<String> {
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        match self {
            Self::Sha256(_) => hash(file, Sha256::new()),
            Self::GitBlob(_) => hash(file, Sha1::new_with_prefix(format!("blob {bytes}\0"))),
            Self::Blake3(_) => Ok(blake3::Hasher::new().update_reader(file)?.finalize().to_hex().to_string()),
        }
    }
}

fn hash<D: Digest>(file: File, mut hasher: D) -> io::Result<String> {
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer)? {
            0 => break,
            bytes => hasher.update(&buffer[..bytes]),
        }
    }
    Ok(hex(&hasher.finalize()))
}

/// The SHA-256 of a file, in hexadecimal digits.
pub(crate) fn sha256(path: &Path) -> io::Result<String> {
    hash(File::open(path)?, Sha256::new())
}

/// Formats bytes in hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing into a string can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Compares a file's hashes with the expected ones.
///
/// # Errors
/// Text that says which hash differs, or why the file can't be read.
pub(crate) fn verify(path: &Path, checks: &[Check]) -> Result<(), String> {
    for check in checks {
        let found = check.of(path).map_err(|error| error.to_string())?;
        if !found.eq_ignore_ascii_case(check.expected()) {
            return Err(format!("its {} is {found}, but {} was expected", check.name(), check.expected()));
        }
    }
    Ok(())
}
