//! Relative paths that configurations and sources give. Independent of what lies there.

use std::path::{Component, Path};

/// Whether a relative path can't lead out of its folder.
pub fn stays_inside(path: &str) -> bool {
    Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}
