//! Which files of a folder hold a model's weights, and what stands where they should be. Independent of their content.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{INDEX, SINGLE, legacy_names::current_names, read_json};
use crate::error::{ModelError, Result};

/// The files that an index lists.
pub(super) struct Shards {
    index: PathBuf,
    /// The shard of each tensor, by its current name.
    of: HashMap<String, String>,
    names: BTreeSet<String>,
}

impl Shards {
    pub(super) fn read(index: &Path) -> Result<Self> {
        let parsed = read_json(index)?;
        let Some(map) = parsed.get("weight_map").and_then(Value::as_object) else {
            return Err(ModelError::file(index, "the key `weight_map` is missing"));
        };
        let mut shards = Self { index: index.to_path_buf(), of: HashMap::new(), names: BTreeSet::new() };
        for (tensor, shard) in map {
            let Some(shard) = shard.as_str().filter(|shard| !shard.contains(['/', '\\']) && *shard != "..") else {
                let message = format!("{shard} of `{tensor}` is not the name of a file in the same folder");
                return Err(ModelError::file(index, message));
            };
            shards.names.insert(shard.into());
            shards.of.extend(current_names(tensor).into_iter().map(|name| (name, shard.into())));
        }
        Ok(shards)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether the tensor is to be read from this shard: from the one that the index names, or, if it names none, from any.
    pub(super) fn has(&self, shard: &str, tensor: &str) -> bool {
        self.of.get(tensor).is_none_or(|named| named == shard)
    }

    pub(super) fn check_present(&self) -> Result<()> {
        let folder = self.index.parent().unwrap_or(&self.index);
        let missing: Vec<&str> = self.names().filter(|name| !folder.join(name).is_file()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(ModelError::file(&self.index, absent_shards(&missing, self.names.len())))
    }
}

fn absent_shards(missing: &[&str], all: usize) -> String {
    let named = missing.iter().take(3).copied().collect::<Vec<_>>().join(", ");
    let more = if missing.len() > 3 { ", ..." } else { "" };
    format!("{} of the {all} files that it lists are missing: {named}{more}: download the whole model", missing.len())
}

/// What is wrong with the list of shards of a folder that has some of them, if anything.
pub fn missing_shards(folder: &Path) -> Option<String> {
    let index = folder.join(INDEX);
    if !index.is_file() || folder.join(SINGLE).is_file() {
        return None;
    }
    let shards = Shards::read(&index).ok()?;
    let (there, missing): (Vec<&str>, Vec<&str>) = shards.names().partition(|name| folder.join(name).is_file());
    (!there.is_empty() && !missing.is_empty()).then(|| absent_shards(&missing, shards.names.len()))
}

/// Which of a folder's two sets of weights is read, if it has two.
pub fn beside(folder: &Path) -> Option<String> {
    (folder.join(SINGLE).is_file() && folder.join(INDEX).is_file()).then(|| {
        format!(
            "the folder has two sets of weights: `{SINGLE}` is used, as transformers does, and the files that `{INDEX}` lists \
             are not"
        )
    })
}

/// What is wrong with the weights of a model's folder that has some, but none that can be read.
pub fn unreadable_weights(folder: &Path) -> Option<String> {
    let has = |name: &str| folder.join(name).is_file();
    let may_be_model = has("config.json") && !has(SINGLE) && !has(INDEX);
    let message = may_be_model.then(|| absent(folder))?;
    message.contains("in PyTorch's format").then_some(message)
}

/// Why there are no weights: what a folder has instead.
pub(super) fn absent(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let ends = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(name) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return format!(
            "there are no safetensors; the weights are in PyTorch's format ({name}), which can run code when it is opened and is not \
             read: save them with `safe_serialization=True` in transformers, or take a revision with safetensors"
        );
    }
    if let Some(name) = ends(&[".gguf"]) {
        return format!(
            "the file is missing, but there is {name}: give that file itself as the `source` of a download"
        );
    }
    if let Some(name) = ends(&[".safetensors"]) {
        return format!(
            "the file is missing, and so is its list of shards, `{INDEX}`; there is {name}: download the whole model"
        );
    }
    "the file is missing: the folder has no weights".into()
}

/// What a file is that should be something else, by its first bytes.
pub fn looks_like(bytes: &[u8]) -> Option<&'static str> {
    let start = bytes.get(..bytes.len().min(256)).unwrap_or_default();
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let begins = |with: &[&[u8]]| with.iter().any(|with| text.starts_with(with));
    if begins(&[b"version https://git-lfs"]) {
        Some(
            "a pointer of Git LFS, which stands for the file: run `git lfs pull` in the repository, or download it from the hub",
        )
    } else if begins(&[b"<!doctype", b"<html", b"<?xml"]) {
        Some("a web page, perhaps one that asks to log in: download the file itself")
    } else if start.starts_with(b"GGUF") {
        Some("a GGUF file: name it `.gguf`, and give it as the `source` of a download")
    } else if start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") {
        Some("a file of PyTorch's: save it with `safe_serialization=True` in transformers")
    } else if start.starts_with(b"\x1f\x8b") {
        Some("a gzip file: unpack it")
    } else {
        None
    }
}
