//! Which files of a folder hold a model's weights, and what stands where they should be. Independent of their content.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{INDEX, SINGLE, legacy_names::current_names, read_json};
use crate::error::{ModelError, Result};

/// A set of weights: the file of all tensors, or the list of several files.
struct Set {
    single: &'static str,
    index: &'static str,
    /// What its files are called in messages.
    called: &'static str,
}

/// The sets that are looked for, the preferred one first.
const SETS: [Set; 2] = [
    Set { single: SINGLE, index: INDEX, called: "safetensors files" },
    Set { single: "pytorch_model.bin", index: "pytorch_model.bin.index.json", called: "files of PyTorch's" },
];

impl Set {
    fn is_in(&self, folder: &Path) -> bool {
        [self.single, self.index].iter().any(|name| folder.join(name).exists())
    }
}

/// What the names of an adapter's or a projector's file begin with.
const TRAINED: [&str; 3] = ["adapter_model.", "mm_projector.", "non_lora_trainables."];

/// Where the tensors of a folder are.
pub(super) enum Source {
    /// In one file.
    One(PathBuf),
    /// In the files that this one lists.
    Shards(PathBuf),
}

/// Finds the weights in a folder.
pub(super) fn find(folder: &Path) -> Result<Source> {
    if let Some(message) = both(folder) {
        return Err(ModelError::file(folder, message));
    }
    let Some(set) = SETS.iter().find(|set| set.is_in(folder)) else {
        return Err(ModelError::file(&folder.join(SINGLE), absent(folder)));
    };
    let single = folder.join(set.single);
    Ok(if single.exists() { Source::One(single) } else { Source::Shards(folder.join(set.index)) })
}

/// What is wrong if a folder has two sets of weights: which of them is meant can't be known.
fn both(folder: &Path) -> Option<String> {
    let [one, other] = SETS.each_ref();
    (one.is_in(folder) && other.is_in(folder)).then(|| {
        format!(
            "the folder has two sets of weights, {} and {}: remove one, or fetch one, as with `files = [\"*.json\", \
             \"*.safetensors\"]`",
            one.called, other.called
        )
    })
}

/// What a folder's weights of Hugging Face's are in, if it has such.
pub(crate) fn set_of(folder: &Path) -> Option<&'static str> {
    SETS.iter().find(|set| set.is_in(folder)).map(|set| set.called)
}

/// Which of these files there is in a folder: the same content under several names, of which a folder may have one.
///
/// # Errors
/// If there are several.
pub fn either(folder: &Path, names: &[&str]) -> Result<Option<PathBuf>> {
    let there: Vec<&&str> = names.iter().filter(|name| folder.join(name).exists()).collect();
    match there[..] {
        [] => Ok(None),
        [one] => Ok(Some(folder.join(one))),
        [one, other, ..] => {
            Err(ModelError::file(folder, format!("the folder has both `{one}` and `{other}`: remove one")))
        }
    }
}

/// Whether a file holds weights, by its name.
pub fn is_weights(name: &str) -> bool {
    let is = |end: &str| Path::new(name).extension().is_some_and(|own| own == end);
    let has_own_name = ["pytorch_model", "params_shard_"].iter().any(|start| name.starts_with(start));
    is("safetensors") || is("gguf") || (is("bin") && has_own_name)
}

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
    let Source::Shards(index) = find(folder).ok()? else { return None };
    let shards = Shards::read(&index).ok()?;
    let (there, missing): (Vec<&str>, Vec<&str>) = shards.names().partition(|name| folder.join(name).is_file());
    (!there.is_empty() && !missing.is_empty()).then(|| absent_shards(&missing, shards.names.len()))
}

/// Which weights of a set are read, if a folder has them in one file and in several.
pub fn beside(folder: &Path) -> Option<String> {
    let has_both = |set: &&Set| folder.join(set.single).is_file() && folder.join(set.index).is_file();
    SETS.iter().find(has_both).map(|set| {
        format!(
            "the folder has two sets of weights: `{}` is used, as transformers does, and the files that `{}` lists are not",
            set.single, set.index
        )
    })
}

/// What is wrong with the weights of a model's folder that has some, but none that can be read.
pub fn unreadable_weights(folder: &Path) -> Option<String> {
    if !folder.join("config.json").is_file() {
        return None;
    }
    both(folder).or_else(|| {
        let message = set_of(folder).is_none().then(|| absent(folder))?;
        message.contains("not read").then_some(message)
    })
}

/// Why there are no weights: what a folder has instead.
fn absent(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let ends = |ends: &[&str]| names.iter().find(|name| ends.iter().any(|end| name.ends_with(end)));
    if let Some(name) = names.iter().find(|name| TRAINED.iter().any(|trained| name.starts_with(trained))) {
        return format!(
            "the folder has no whole model, but what a training has changed of one ({name}): give it to `merge` as `model`, with its base \
             as `llm` and `vision`"
        );
    }
    if let Some(name) = names.iter().find(|name| name.starts_with("pytorch_model-")) {
        return format!(
            "the list of its files, `pytorch_model.bin.index.json`, is missing, so that {name} is not read: download the whole model"
        );
    }
    if let Some(name) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        return format!(
            "there are no weights under a usual name, and {name} is not read: if it holds the whole model, name it `pytorch_model.bin`"
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
    } else if start.starts_with(b"\x80\x02") {
        Some(
            "a file of PyTorch's before version 1.6: open it with `torch.load(file, weights_only=True)` and save that with \
             `torch.save` of a newer version",
        )
    } else if start.starts_with(b"PK\x03\x04") {
        Some("a zip archive, perhaps one of `torch.save`")
    } else if start.starts_with(b"\x1f\x8b") {
        Some("a gzip file: unpack it")
    } else {
        None
    }
}
