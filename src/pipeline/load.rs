//! Reads a pipeline file, the files that it extends, and the changes made with `--set`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::{
    check,
    declaration::Pipeline,
    diagnostic::{Diagnostic, Diagnostics, Sources, Span, nearest},
    points, sweep,
    value::{self, Node, Table, Value},
    vars,
};

/// The name that stands for the path of a `--set` argument.
pub(crate) const COMMAND_LINE: &str = "--set";

/// A pipeline file as one table, merged with the files that it extends and the changes made on the command line.
#[derive(Debug)]
pub(crate) struct Document {
    table: Table,
    file_stem: String,
}

/// Reads and checks the pipeline at `path`. `overrides` are `key.path=value` texts from the command line.
#[cfg(test)]
pub(crate) fn load(path: &Path, overrides: &[String], sources: &mut Sources) -> Result<Pipeline, Diagnostics> {
    Document::read(path, overrides, sources)?.pipeline(sources)
}

impl Document {
    /// Reads the file at `path` and the files that it extends.
    pub(crate) fn read(path: &Path, overrides: &[String], sources: &mut Sources) -> Result<Self, Diagnostics> {
        let mut table = read_chain(path, &mut Vec::new(), sources).map_err(|problem| vec![problem])?;
        for text in overrides {
            let over = parse_override(text, sources).map_err(|problem| vec![problem])?;
            check_exists(&table, text).map_err(|problem| vec![problem])?;
            table.merge(over);
        }
        let stem = path.file_stem().map_or_else(|| "pipeline".into(), |stem| stem.to_string_lossy().into_owned());
        Ok(Self { table, file_stem: stem })
    }

    /// Parses a text from [`Document::to_toml`]. Errors name `path` as its file.
    pub(crate) fn of_text(text: String, path: PathBuf, sources: &mut Sources) -> Result<Self, Diagnostics> {
        let file = sources.add(path, text);
        let table = value::parse(sources.text(file), file).map_err(|problem| vec![problem])?;
        Ok(Self { table, file_stem: "pipeline".into() })
    }

    /// The whole document as one file, for the record of a run.
    pub(crate) fn to_toml(&self) -> String {
        let mut table = self.table.to_toml();
        table.entry("name").or_insert_with(|| self.file_stem.clone().into());
        table.to_string()
    }

    /// The values in a text from [`Document::to_toml`], by dotted key and without `name` and `[sweep]`.
    pub(crate) fn parameters(text: &str) -> BTreeMap<String, toml::Value> {
        let mut table = value::parse(text, 0).unwrap_or_default();
        for not_a_parameter in ["sweep", "name"] {
            table.remove(not_a_parameter);
        }
        table.flat(|_| false).into_iter().map(|(key, node)| (key, node.value.to_toml())).collect()
    }

    /// The pipeline without its sweep.
    pub(crate) fn pipeline(&self, sources: &Sources) -> Result<Pipeline, Diagnostics> {
        make(self.table.clone(), &self.file_stem, sources)
    }

    /// Whether the file has a `[sweep]`.
    pub(crate) fn is_swept(&self) -> bool {
        self.table.get("sweep").is_some()
    }

    /// Applies a `--set` of `imp-flow sweep`: several values, separated by commas, become an axis; a single value applies to all
    /// points.
    pub(crate) fn sweep_over(&mut self, text: &str, sources: &mut Sources) -> Result<(), Diagnostics> {
        let (key, given) = text.split_once('=').unwrap_or((text, ""));
        let parts = split(given);
        sweep::forget(&mut self.table, key.trim());
        if parts.len() < 2 {
            let over = parse_override(text, sources).map_err(|problem| vec![problem])?;
            check_exists(&self.table, text).map_err(|problem| vec![problem])?;
            self.table.merge(over);
            return Ok(());
        }
        let mut values = Vec::new();
        for part in parts {
            let over = parse_override(&format!("value={}", part.trim()), sources).map_err(|problem| vec![problem])?;
            values.extend(over.0.into_iter().map(|entry| entry.node));
        }
        let span = values[0].span.clone();
        sweep::add(&mut self.table, key.trim(), Node { value: Value::Array(values), span });
        Ok(())
    }

    /// All points of `[sweep]` as one pipeline.
    pub(crate) fn sweep(&self, sources: &Sources) -> Result<Pipeline, Diagnostics> {
        let mut table = self.table.clone();
        let Some(entry) = table.remove("sweep") else {
            let help = "add a table `[sweep]` to the pipeline, or give several values, as in \
                        `--set stages.finetune.learning_rate=1e-4,2e-4`";
            return Err(vec![Diagnostic::new("there is nothing to sweep over", Some(Span::whole_file(0))).help(help)]);
        };
        let axes = sweep::axes(entry.node)?;
        points::all(&table, &axes, sources, |table, sources| make(table, &self.file_stem, sources))
    }
}

/// Substitutes the variables, and checks the result.
fn make(mut table: Table, file_stem: &str, sources: &Sources) -> Result<Pipeline, Diagnostics> {
    let mut problems = Diagnostics::new();
    let vars = match table.remove("vars").map(|entry| entry.node.value) {
        Some(Value::Table(vars)) => vars,
        _ => Table::default(),
    };
    for entry in &mut table.0 {
        vars::substitute(&mut entry.node, &vars, &mut problems);
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    check::pipeline(table, file_stem, sources)
}

/// Splits at commas outside quotes and brackets.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut from, mut depth, mut quote, mut escaped) = (Vec::new(), 0, 0_usize, None, false);
    for (at, c) in text.char_indices() {
        let skip = escaped;
        escaped = quote == Some('"') && c == '\\' && !skip;
        if skip {
            continue;
        }
        match (quote, c) {
            (Some(open), _) => quote = Some(open).filter(|open| *open != c),
            (None, '"' | '\'') => quote = Some(c),
            (None, '[' | '{') => depth += 1,
            (None, ']' | '}') => depth = depth.saturating_sub(1),
            (None, ',') if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts
}

/// The largest pipeline file in bytes.
const LARGEST_FILE: u64 = 16 << 20;

/// The text of a pipeline file. Never more than a limit is read: a device has no end.
fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        let message = format!("it is larger than {} MB, the most that a pipeline file may have", LARGEST_FILE >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(text)
}

/// Reads a file and merges it over the one that it extends. `chain` lists the files that led here.
fn read_chain(path: &Path, chain: &mut Vec<PathBuf>, sources: &mut Sources) -> Result<Table, Diagnostic> {
    let text = read_text(path).map_err(|error| {
        let help = similar(path).map_or_else(
            || {
                "give the path of a pipeline file, as in `imp-flow run pipelines/tiny.toml`; `imp-flow init` writes one"
                    .into()
            },
            |similar| format!("did you mean `{}`?", similar.display()),
        );
        Diagnostic::new(format!("can't read the pipeline {}: {error}", path.display()), None).help(help)
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
            .help("relative paths start from the folder of this file"));
    };
    if !canonical.is_file() {
        return Err(Diagnostic::new(format!("{} is not a regular file", base.display()), span)
            .help("`extends` must be the path of a pipeline file"));
    }
    if chain.contains(&canonical) {
        return Err(Diagnostic::new("this pipeline extends itself", span).help("remove one `extends` from the cycle"));
    }
    let mut merged = read_chain(&base, chain, sources)?;
    merged.merge(table);
    Ok(merged)
}

/// A pipeline file in the same folder whose name differs only by a typo.
fn similar(path: &Path) -> Option<PathBuf> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let pipelines = files.filter(|file| file.extension().is_some_and(|ending| ending == "toml"));
    let names: Vec<String> = pipelines.filter_map(|file| Some(file.file_stem()?.to_str()?.to_string())).collect();
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    nearest(path.file_stem()?.to_str()?, &known).map(|name| path.with_file_name(format!("{name}.toml")))
}

/// An error if the stage or variable that `--set` changes does not exist: its name is probably misspelt.
fn check_exists(table: &Table, text: &str) -> Result<(), Diagnostic> {
    let path = text.split('=').next().unwrap_or_default();
    let mut parts = path.split('.').map(str::trim);
    let (Some(of @ ("stages" | "vars")), Some(name)) = (parts.next(), parts.next()) else { return Ok(()) };
    let known = table.keys_of(of);
    if known.contains(&name) {
        return Ok(());
    }
    let what = if of == "vars" { "variable" } else { "stage" };
    Err(Diagnostic::new(format!("--set {text}: there is no {what} `{name}`"), None).suggest(name, known))
}

/// Parses `stages.finetune.learning_rate=5e-4` into a table with one value. A value that is not valid TOML is taken as a string.
fn parse_override(text: &str, sources: &mut Sources) -> Result<Table, Diagnostic> {
    let wrong = |message: &str| {
        Diagnostic::new(format!("--set {text}: {message}"), None)
            .help("write key=value, as in `--set stages.finetune.learning_rate=5e-4`")
    };
    let (path, given) = text.split_once('=').ok_or_else(|| wrong("there is no `=`"))?;
    let path = path.trim();
    if path.split('.').any(str::is_empty) {
        return Err(wrong("a part of the key is empty"));
    }
    let document = |value: &str| format!("{path} = {value}");
    let quoted = toml::Value::String(given.into()).to_string();
    let document = match value::parse(&document(given), 0) {
        Ok(_) => document(given),
        Err(_) if split(given).len() > 1 => {
            return Err(Diagnostic::new(format!("--set {text}: several values"), None).help(
                "`imp-flow sweep` takes several values; a string with commas needs quotes, as in `--set 'KEY=\"a, b\"'`",
            ));
        }
        Err(_) => document(&quoted),
    };
    let file = sources.add(PathBuf::from(COMMAND_LINE), document);
    value::parse(sources.text(file), file).map_err(|problem| wrong(&problem.message))
}
