//! Checks the layout of the code: a module imports only modules of lower floors, and the files of a folder form no cycle.
//! Independent of what the code does: it reads imports.
#![allow(clippy::unwrap_used, reason = "a test that can't continue should say where")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The floors of the runner, from the bottom up. Modules of one floor don't import each other.
const RUNNER: &[&[&str]] = &[
    &["cli", "machine", "pipeline", "pool", "store"],
    &["remote"],
    &["artifacts", "executor", "settings", "view"],
    &["scheduler"],
    &["failure"],
    &["report"],
    &["serve"],
    &["fuzzing"],
    &["commands"],
    &["main"],
];

/// The floors of the stages: the contract at the bottom, then what kinds share, then the kinds, which don't import each other, and
/// their table on top.
const STAGES: &[&[&str]] = &[
    &["contract"],
    &["image", "model_folder", "net", "place", "scratch", "testing", "text"],
    &["data", "speaker"],
    &["bucket", "conversation", "hub_files", "push", "training"],
    &["ask", "command", "download", "eval", "finetune", "merge", "preprocess", "pretrain", "quantize", "synthetic"],
    &["fuzzing", "kinds"],
    &["lib"],
];

/// The floors of the model: bytes and matrices at the bottom, then files, layers and towers, then what is done with a model.
const MODEL: &[&[&str]] = &[
    &["build", "error", "images", "mmap", "precision", "rope", "schedule", "simd"],
    &["encoding"],
    &["tensor"],
    &["encoder", "family", "sample", "weights"],
    &["config", "layers"],
    &["init", "language", "memory", "projector", "vision"],
    &["imp", "peft", "work"],
    &["generate", "optim", "save", "splice"],
    &["gguf", "llava", "mlc"],
    &["load", "quant"],
    &["lib"],
];

#[test]
fn modules_of_the_model_import_lower_floors_only() {
    assert_floors(Path::new("stages/model"), MODEL);
}

/// Libraries that only these files use, so that another can take their place.
const HOMES: &[(&str, &[&str])] = &[
    (
        "cudarc",
        &[
            "stages/model/tensor/device/cuda/graph.rs",
            "stages/model/tensor/device/cuda/library.rs",
            "stages/model/tensor/device/cuda/memory.rs",
            "stages/model/tensor/device/cuda/mod.rs",
            "stages/model/tensor/device/cuda/module.rs",
            "stages/model/tensor/device/cuda/probe.rs",
            "stages/model/tensor/device/cuda/product.rs",
        ],
    ),
    ("dfdx", &["stages/model/tensor/mat.rs", "stages/model/tensor/tape.rs"]),
    ("sled", &["src/store/index.rs"]),
    ("petgraph", &["src/pipeline/graph.rs"]),
    ("rustyline", &["src/report/prompt.rs"]),
];

#[test]
fn libraries_are_used_in_their_home_only() {
    let files: Vec<PathBuf> =
        ["src", "stages", "stages/model"].iter().flat_map(|root| rust_files(Path::new(root))).collect();
    for (library, homes) in HOMES {
        let uses = |file: &&PathBuf| code(file).contains(&format!("{library}::"));
        let found: Vec<String> = files.iter().filter(uses).map(|file| file.display().to_string()).collect();
        assert_eq!(found, *homes, "{library}");
    }
}

#[test]
fn modules_of_the_stages_import_lower_floors_only() {
    assert_floors(Path::new("stages"), STAGES);
}

#[test]
fn modules_of_the_runner_import_lower_floors_only() {
    assert_floors(Path::new("src"), RUNNER);
}

#[test]
fn files_of_a_folder_form_no_cycle() {
    let folders = entries(Path::new("src")).into_iter().filter(|path| path.is_dir());
    let mut edges = 0;
    for folder in folders {
        let imports = imports_within(&folder);
        edges += imports.values().map(BTreeSet::len).sum::<usize>();
        if let Some(cycle) = cycle(&imports) {
            panic!("{}: {}", folder.display(), cycle.join(" -> "));
        }
    }
    assert!(edges > 50, "only {edges} imports found: the test reads the wrong files");
}

fn assert_floors(root: &Path, floors: &[&[&str]]) {
    let floor_of = |module: &str| floors.iter().position(|floor| floor.contains(&module));
    let mut found = BTreeSet::new();
    let mut count = 0;
    for file in rust_files(root) {
        let path = module_path(root, &file);
        let own = path[0].clone();
        let floor = floor_of(&own).unwrap_or_else(|| panic!("`{own}` is on no floor: add it to tests/floors.rs"));
        for name in imports(&code(&file), path.len()) {
            count += 1;
            match floor_of(&name) {
                Some(below) if name == own || below < floor => {}
                // Macros and items of the crate's root.
                None => {}
                Some(_) => panic!("{} imports `{name}`, which is not on a lower floor", file.display()),
            }
        }
        found.insert(own);
    }
    let missing: Vec<_> = floors.iter().copied().flatten().filter(|module| !found.contains(**module)).collect();
    assert!(missing.is_empty(), "on a floor, but not in {}: {missing:?}", root.display());
    assert!(count > 50, "only {count} imports found: the test reads the wrong files");
}

/// The module of a file, from the crate's root: `["store", "gc"]`.
fn module_path(root: &Path, file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(root).unwrap().with_extension("");
    let mut path: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if path.len() > 1 {
        path.pop_if(|last| last == "mod");
    }
    path
}

/// All Rust files except those of tests.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for path in entries(folder) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !path.join("Cargo.toml").exists() && !["tests", "examples"].contains(&name.as_str()) {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "rs")
            && !["tests", "examples"].contains(&name.as_str())
        {
            files.push(path);
        }
    }
    files
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The text of a file without comments and without its unit tests.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The names directly below the crate's root to which `text`, a module at `depth`, refers.
fn imports(text: &str, depth: usize) -> Vec<String> {
    let mut found = names_after(text, "crate::");
    found.extend(names_after(text, &"super::".repeat(depth)));
    found
}

/// The first parts of all paths that follow `prefix`: `a` and `b` for `prefix{a::x, b::{y, z}}`.
fn names_after(text: &str, prefix: &str) -> Vec<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut found = Vec::new();
    for (at, _) in text.match_indices(prefix) {
        if text[..at].ends_with(|c: char| is_word(c) || c == ':' || c == '$') {
            continue;
        }
        let rest = &text[at + prefix.len()..];
        if !rest.starts_with('{') {
            found.push(word(rest));
            continue;
        }
        let mut depth = 0;
        for (at, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && (c == '{' || c == ',') {
                found.push(word(rest[at + 1..].trim_start()));
            }
        }
    }
    // A longer chain of `super` leads to a different module.
    found.retain(|name| !name.is_empty() && name != "super" && name != "self");
    found
}

/// For each file of a folder, the files that it imports, directly or through names that `mod.rs` re-exports.
fn imports_within(folder: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let files: Vec<PathBuf> =
        entries(folder).into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "rs")).collect();
    let name = |file: &Path| file.file_stem().unwrap().to_string_lossy().into_owned();
    let modules: BTreeSet<String> = files.iter().map(|file| name(file)).collect();
    let mut reexported = BTreeMap::new();
    for statement in code(&folder.join("mod.rs")).split(';').filter_map(|text| text.split_once("use ")) {
        let mut words = statement.1.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty());
        if let Some(module) = words.next().filter(|first| modules.contains(*first)) {
            reexported.extend(words.map(|word| (word.to_string(), module.to_string())));
        }
    }
    let home = |item: String| if modules.contains(&item) { Some(item) } else { reexported.get(&item).cloned() };
    let imports = |file: &PathBuf| {
        let own = name(file);
        let found = names_after(&code(file), "super::").into_iter().filter_map(home);
        (own.clone(), found.filter(|module| *module != own).collect())
    };
    files.iter().filter(|file| name(file) != "mod").map(imports).collect()
}

/// A cycle, if there is one.
fn cycle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut open = edges.clone();
    // Removes files without imports among the remaining ones, until only cycles and the files that lead to them remain.
    while let Some(done) =
        open.iter().find(|(_, to)| !to.iter().any(|to| open.contains_key(to))).map(|(from, _)| from.clone())
    {
        open.remove(&done);
    }
    let mut path = vec![open.keys().next()?.clone()];
    loop {
        let next = open[path.last()?].iter().find(|to| open.contains_key(*to))?.clone();
        if let Some(start) = path.iter().position(|seen| *seen == next) {
            path.drain(..start);
            path.push(next);
            return Some(path);
        }
        path.push(next);
    }
}

#[test]
fn imports_are_read_as_they_are_written() {
    let text = "use crate::{a::x, b::{y, z},\n c};\nfn f() { crate::d::g(); $crate::no!(); super::super::e::h() }";
    assert_eq!(imports(text, 2), ["a", "b", "c", "d", "e"]);
    assert_eq!(imports("use super::{a, b::c};", 1), ["a", "b"]);
    assert_eq!(imports("use super::super::a;", 1), [""; 0]);
    let edges = |pairs: &[(&str, &str)]| {
        let mut edges = BTreeMap::<String, BTreeSet<String>>::new();
        for (from, to) in pairs {
            edges.entry((*from).into()).or_default().insert((*to).into());
            edges.entry((*to).into()).or_default();
        }
        edges
    };
    assert_eq!(cycle(&edges(&[("a", "b"), ("b", "c"), ("d", "c")])), None);
    assert_eq!(cycle(&edges(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap(), ["b", "c", "b"]);
}
