//! `preprocess` against the reference's outputs (`fixtures/`), and the stage on good and bad data.
#![allow(clippy::unwrap_used)]

mod images;
mod prompts;
mod stage;

use std::path::{Path, PathBuf};

/// A file or folder of `stages/preprocess/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("preprocess/fixtures").join(name)
}
