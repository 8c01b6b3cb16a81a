//! `imp-flow init`.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use crate::{
    cli::{Template, USUAL_FILE},
    failure::Failure,
    report,
};

/// The example of the README, which is tested end to end.
const TINY: &str = include_str!("../../pipelines/tiny.toml");
const FINETUNE: &str = include_str!("../../pipelines/finetune_custom.toml");
const IMP_V1: &str = include_str!("../../pipelines/v1_3b.toml");
/// What that extends, and its name beside it.
const LLAVA: &str = include_str!("../../pipelines/base/llava.toml");
const LLAVA_FILE: &str = "base/llava.toml";
const OWN_DATA: &str = include_str!("init/own_data.toml");

const EXISTS: &str = "it already exists; give a different name, as in `imp-flow init my.toml`";

/// Writes a commented pipeline, and what it extends. Never overwrites a file.
pub(crate) fn init(place: &Path, template: Template) -> Result<ExitCode, Failure> {
    let file = file_of(place);
    // The path by which its own head names the template, and the name of its pipeline.
    let (text, path, name) = match template {
        Template::Tiny => (TINY, "pipelines/tiny.toml", "tiny"),
        Template::Finetune => (FINETUNE, "pipelines/finetune_custom.toml", "finetune-custom"),
        Template::ImpV1 => (IMP_V1, "pipelines/v1_3b.toml", "imp-v1-3b"),
        Template::OwnData => (OWN_DATA, "PIPELINE", "own-data"),
    };
    let own_name = name_of(&file);
    let text = text
        .replacen(&format!("name = \"{name}\""), &format!("name = \"{own_name}\""), 1)
        .replace(&format!("artifacts/{name}/"), &format!("artifacts/{own_name}/"))
        .replace(path, &file.to_string_lossy());
    let base = (template == Template::ImpV1).then(|| file.with_file_name("").join(LLAVA_FILE));
    // What is in the way is found before anything is written.
    if let Some(path) = base.iter().chain([&file]).find(|path| path.symlink_metadata().is_ok()) {
        return Err(failure(path, io::Error::new(io::ErrorKind::AlreadyExists, EXISTS)));
    }
    if let Some(base) = &base {
        write(base, LLAVA)?;
    }
    write(&file, &text)?;
    let shown = file.display();
    let beside = base.map(|base| format!(" and {}", base.display())).unwrap_or_default();
    report::print(&format!("Wrote {shown}{beside}. Next: imp-flow plan {shown}, then imp-flow run {shown}"));
    Ok(ExitCode::SUCCESS)
}

/// The file to write: a place that is no TOML file is a folder.
fn file_of(place: &Path) -> PathBuf {
    let is_file = place.extension().is_some_and(|ending| ending == "toml") && !place.is_dir();
    if is_file { place.into() } else { place.join(USUAL_FILE) }
}

/// The pipeline is called like its file, or like the folder of a file with the usual name.
fn name_of(file: &Path) -> String {
    let folder =
        || std::path::absolute(file).ok()?.parent()?.file_name().map(|name| name.to_string_lossy().into_owned());
    let stem = file.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
    let has_folder = file.file_name().is_some_and(|name| name == USUAL_FILE) && file.components().count() > 1;
    let name = if has_folder { folder().unwrap_or(stem) } else { stem };
    // A name stands in quotes in the file.
    name.chars().map(|c| if c.is_alphanumeric() || "-_. ".contains(c) { c } else { '-' }).collect()
}

fn failure(path: &Path, source: io::Error) -> Failure {
    Failure::Io { what: format!("can't write {}", path.display()), source }
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| failure(path, source);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut target =
        OpenOptions::new().write(true).create_new(true).open(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => failed(io::Error::new(error.kind(), EXISTS)),
            _ => failed(error),
        })?;
    target.write_all(text.as_bytes()).map_err(failed)
}
