//! Relative paths in configurations and archives. Independent of the files that they name.

use std::path::{Component, Path};

/// Whether a relative path stays inside its folder.
pub fn stays_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}
