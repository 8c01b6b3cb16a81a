//! Reads a pipeline file with the files that it extends, and what `--set` changes.

use std::path::{Path, PathBuf};

use super::{
    Diagnostic, Diagnostics, Pipeline, Sources, check,
    diagnostic::Span,
    value::{self, Entry, Node, Table, Value},
    vars,
};

/// Reads and checks the pipeline at `path`. `overrides` are `key.path=value` texts from the command line.
pub(crate) fn load(path: &Path, overrides: &[String], sources: &mut Sources) -> Result<Pipeline, Diagnostics> {
    let mut table = read_chain(path, &mut Vec::new(), sources).map_err(|problem| vec![problem])?;
    for text in overrides {
        let over = parse_override(text, sources).map_err(|problem| vec![problem])?;
        table.merge(over);
    }
    let file_stem = path.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());

    let mut problems = Diagnostics::new();
    if let Some(Entry { node: Node { value: Value::Table(vars), .. }, .. }) = table.remove("vars") {
        for entry in &mut table.0 {
            vars::substitute(&mut entry.node, &vars, &mut problems);
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    check::pipeline(table, &file_stem, sources)
}

/// A file, laid upon the one that it extends.
fn read_chain(path: &Path, chain: &mut Vec<PathBuf>, sources: &mut Sources) -> Result<Table, Diagnostic> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Diagnostic::new(format!("can't read the pipeline {}: {error}", path.display()), None).help(
            "give the path of a pipeline file, as in `imp-flow run pipelines/tiny.toml`; `imp-flow init` writes one",
        )
    })?;
    let file = sources.add(path.to_path_buf(), text);
    let mut table = value::parse(sources.text(file), file)?;
    chain.push(path.canonicalize().unwrap_or_else(|_| path.to_path_buf()));

    let Some(extends) = table.remove("extends") else { return Ok(table) };
    let span = Some(extends.node.span.clone());
    let Some(name) = extends.node.as_str() else {
        return Err(Diagnostic::new("`extends` must be the path of a pipeline file", span));
    };
    let base = path.parent().unwrap_or(Path::new("")).join(name);
    let Ok(canonical) = base.canonicalize() else {
        return Err(Diagnostic::new(format!("no such file: {}", base.display()), span)
            .help("the path is meant from the folder of this file"));
    };
    if chain.contains(&canonical) {
        return Err(Diagnostic::new("this pipeline extends itself", span).help("remove one `extends` of the circle"));
    }
    let mut merged = read_chain(&base, chain, sources)?;
    merged.merge(table);
    Ok(merged)
}

/// `stages.finetune.learning_rate=5e-4` as a table of one value. A value that isn't TOML is a string.
fn parse_override(text: &str, sources: &mut Sources) -> Result<Table, Diagnostic> {
    let wrong = |message: &str| {
        Diagnostic::new(format!("--set {text}: {message}"), None)
            .help("write key=value, as in `--set stages.finetune.learning_rate=5e-4`")
    };
    let (path, given) = text.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    if path.split('.').any(str::is_empty) {
        return Err(wrong("a part of the key is empty"));
    }
    let document = |value: &str| format!("{path} = {value}");
    let quoted = toml::Value::String(given.into()).to_string();
    let document = if value::parse(&document(given), 0).is_ok() { document(given) } else { document(&quoted) };
    let file = sources.add(PathBuf::from("--set"), document);
    value::parse(sources.text(file), file).map_err(|problem| wrong(&problem.message))
}

/// A place for problems with a whole file.
pub(super) fn whole_file(file: usize) -> Span {
    Span { file, range: 0..0 }
}
