//! Side files of a work folder: they are derived or only shown, so that damage to them must not stop a stage.
//! Independent of their content.

use std::{fs, io, path::Path};

/// Moves aside what is in the way of a regular file at `path`, such as a folder. Returns whether something was.
///
/// # Errors
/// If it can't be moved.
pub fn make_room(path: &Path) -> io::Result<bool> {
    // Follows links: a link to a regular file serves as one.
    if path.symlink_metadata().is_err() || path.metadata().is_ok_and(|found| found.is_file()) {
        return Ok(false);
    }
    set_aside(path).map(|()| true)
}

/// Moves aside what is in the way of a folder at `path`. Returns whether something was.
///
/// # Errors
/// If it can't be moved.
pub fn make_room_for_folder(path: &Path) -> io::Result<bool> {
    if path.symlink_metadata().is_err() || path.is_dir() {
        return Ok(false);
    }
    set_aside(path).map(|()| true)
}

/// What to tell the user after something was moved aside.
pub fn warning(path: &Path) -> String {
    format!("{} was damaged: it was moved to {}.damaged and is created again", path.display(), path.display())
}

/// Renames `path`, replacing what was set aside before.
fn set_aside(path: &Path) -> io::Result<()> {
    let mut target = path.as_os_str().to_owned();
    target.push(".damaged");
    let target = Path::new(&target);
    match target.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(target)?,
        Ok(_) => fs::remove_file(target)?,
        Err(_) => {}
    }
    fs::rename(path, target)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_what_is_in_the_way_is_moved() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("log");
        assert!(!make_room(&path).unwrap() && !make_room_for_folder(&path).unwrap());
        for _ in 0..2 {
            fs::create_dir_all(path.join("x")).unwrap();
            assert!(!make_room_for_folder(&path).unwrap() && make_room(&path).unwrap());
            assert!(!path.exists() && root.path().join("log.damaged/x").exists());
        }
        fs::write(&path, "x").unwrap();
        assert!(!make_room(&path).unwrap() && make_room_for_folder(&path).unwrap());
        assert!(!path.exists() && root.path().join("log.damaged").is_file());
    }
}
