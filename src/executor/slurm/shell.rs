//! Scripts, and names and paths that are safe in them. Independent of what they do.

use std::{
    ffi::OsStr,
    fs, io,
    os::unix::{ffi::OsStrExt, fs::PermissionsExt},
    path::Path,
};

use crate::store::Digest;

/// Writes a script that can be run, in place of what is there: that may be a link to the script of an array.
pub(super) fn write_script(path: &Path, script: &[u8]) -> io::Result<()> {
    remove(path)?;
    fs::write(path, script)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Removes a file or a link, if there is one.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A path as `--output` takes it: `%` has a meaning there.
pub(super) fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace('%', "%%")
}

/// A name for an attempt that no other has.
pub(super) fn token(work: &Path) -> String {
    let question = format!("{} {:?} {}", std::process::id(), std::time::SystemTime::now(), work.display());
    Digest::of(question.as_bytes()).hex()[..12].to_string()
}

/// A name that needs no quoting.
pub(super) fn plain(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().take(80).map(allowed).collect()
}

/// A string for a shell, in single quotes.
pub(super) fn quoted(text: &OsStr) -> Vec<u8> {
    let mut quoted = vec![b'\''];
    for byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend(br"'\''"),
            byte => quoted.push(*byte),
        }
    }
    quoted.push(b'\'');
    quoted
}
