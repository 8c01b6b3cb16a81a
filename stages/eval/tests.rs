//! The stage on a tiny model, from start to resumption.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

/// A file or folder of `stages/eval/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("eval/fixtures").join(name)
}
