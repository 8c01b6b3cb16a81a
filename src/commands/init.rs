//! `imp-flow init`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use crate::{failure::Failure, report};

/// The pipeline that `init` writes: the example of the README, which is tested end to end.
const TEMPLATE: &str = include_str!("../../pipelines/tiny.toml");

const EXISTS: &str = "it already exists; give a different name, as in `imp-flow init my.toml`";

/// Writes a commented pipeline. Never overwrites a file.
pub(crate) fn init(file: &Path) -> Result<ExitCode, Failure> {
    let failure = |source| Failure::Io { what: format!("can't write {}", file.display()), source };
    if let Some(parent) = file.parent() {
        std::fs::create_dir_all(parent).map_err(failure)?;
    }
    let mut target =
        OpenOptions::new().write(true).create_new(true).open(file).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => failure(io::Error::new(error.kind(), EXISTS)),
            _ => failure(error),
        })?;
    let name = file.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy());
    let text = TEMPLATE
        .replacen("name = \"tiny\"", &format!("name = \"{name}\""), 1)
        .replace("pipelines/tiny.toml", &file.to_string_lossy());
    target.write_all(text.as_bytes()).map_err(failure)?;
    report::print(&format!("Wrote {0}. Next: imp-flow plan {0}, then imp-flow run {0}", file.display()));
    Ok(ExitCode::SUCCESS)
}
