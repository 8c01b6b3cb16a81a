//! `imp-flow import`: pipelines from other programs' training scripts.

mod flags;
mod pipeline;
mod script;
mod values;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::{self, Read, Write},
    path::Path,
    process::ExitCode,
};

use super::session::usage;
use crate::{
    cli::{Common, ImportLlavaArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
};

/// The most bytes of a script.
const LARGEST: u64 = 1 << 20;

/// Writes the pipeline of a training script of LLaVA or Imp. Never runs the script.
pub(crate) fn import_llava(args: &ImportLlavaArgs, common: &Common) -> Result<ExitCode, Failure> {
    let text = read(&args.script)?;
    let mut variables = BTreeMap::new();
    for given in &args.variables {
        let Some((name, value)) = given.split_once('=') else {
            return Err(usage(Diagnostic::new(format!("`--var {given}` must be like NAME=VALUE"), None)));
        };
        variables.insert(name.to_string(), value.to_string());
    }
    let Some(call) = script::read(&text, &variables) else {
        let shown = args.script.display();
        let problem = Diagnostic::new(format!("{shown} starts no training program"), None);
        return Err(usage(problem.help(
            "a line like `deepspeed llava/train/train_mem.py --flag value` was expected; programs in other scripts that it calls are not seen",
        )));
    };
    let stem = args.script.file_stem().map_or_else(|| "imported".into(), |stem| stem.to_string_lossy().into_owned());
    let written = pipeline::write(&call, &args.script.display().to_string(), &name(&stem), args.devices);
    match &args.output {
        Some(file) => write_new(file, &written.text)?,
        None => report::print_raw(&written.text),
    }
    for remark in &written.remarks {
        report::remark(remark, common.style());
    }
    if let Some(file) = &args.output {
        report::note(&format!("Wrote {0}. Next: imp-flow plan {0}", file.display()), common.style());
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> Result<String, Failure> {
    let failed = |source| Failure::Io { what: format!("can't read {}", path.display()), source };
    let mut bytes = Vec::new();
    // Opening a pipe would wait for whoever writes into it.
    if std::fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(failed(io::Error::other("it is no file")));
    }
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(failed)?;
    let too_large = || io::Error::other(format!("it is no script: it has more than {LARGEST} bytes"));
    if bytes.len() as u64 > LARGEST {
        return Err(failed(too_large()));
    }
    String::from_utf8(bytes).map_err(|_| failed(io::Error::other("it is no text")))
}

/// A name for a pipeline: letters, digits and dashes.
fn name(text: &str) -> String {
    let name: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "imported".into() } else { name.into() }
}

/// Writes a file that does not exist yet.
fn write_new(path: &Path, text: &str) -> Result<(), Failure> {
    let failed = |source| Failure::Io { what: format!("can't write {}", path.display()), source };
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            failed(io::Error::new(error.kind(), "it exists; name another file with --output"))
        }
        _ => failed(error),
    })?;
    file.write_all(text.as_bytes()).map_err(failed)
}
