//! Model folders, as stages read and write them: unchanged parts are linked, not copied.
//! Independent of what a stage does with the model.

use std::path::{Path, PathBuf};

use imp_model::{
    Imp, ModelError,
    config::{ConfigFile, ModelKind, VisionConfig},
    save, weights,
};

use crate::{
    Job, StageError,
    contract::{
        error::remedy,
        forecast::{Outlook, Records, Tower},
    },
};

/// A model's error as a stage's, with the path of the file as the user knows it.
pub(crate) fn model_error(job: &Job, error: &ModelError) -> StageError {
    job.renamed(stage_error(error))
}

/// A model's error as a stage's.
pub(crate) fn stage_error(error: &ModelError) -> StageError {
    if let ModelError::Io { file, source } = error
        && let Some(help) = remedy(source)
    {
        return StageError::failed(format!("{}: {source}", file.display()), help);
    }
    let help = match error {
        ModelError::Overflow { .. } => {
            "choose a type that can hold it: `dtype = \"f32\"` in `merge`, or `scheme = \"f32\"` in a GGUF file. A model whose \
             weights are so large can't be quantized; check that its training did not diverge"
        }
        _ => "check that this is the model you meant, and that its files are whole",
    };
    StageError::input(error.path(), error.message(), help)
}

/// Tells what of a model folder is not used, although it may matter.
pub(crate) fn remark(job: &Job, folder: &Path) {
    for message in remarks(folder, &job.named(folder)) {
        job.caution(message);
    }
}

/// What of a model folder, which is called `named`, is not used, although it may matter: unknown settings, a second set of weights.
pub(crate) fn remarks(folder: &Path, named: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        weights::beside(folder).map(|message| format!("{}: {message}", named.display())).into_iter().collect();
    let unknown = ConfigFile::read(folder).map(|file| file.unknown_keys()).unwrap_or_default();
    if !unknown.is_empty() {
        let shown: Vec<&str> = unknown.iter().take(8).map(String::as_str).collect();
        let more = if unknown.len() > shown.len() { ", ..." } else { "" };
        all.push(format!(
            "{}: {} unknown key(s) are not used: {}{more}. If one of them changes the network, results will be wrong",
            named.join("config.json").display(),
            unknown.len(),
            shown.join(", ")
        ));
    }
    all
}

/// The number of embeddings of the language model in `folder`, if that has a configuration.
pub(crate) fn embedding_rows(folder: &Path) -> Option<usize> {
    Some(ConfigFile::read(folder).ok()?.language().ok()?.vocab_size)
}

/// Links all files of `from` but the weights into the folder `to` of the output: tokenizer, configuration. Does not replace
/// existing files.
pub(crate) fn link_others(job: &Job, from: &Path, to: &str) -> Result<(), StageError> {
    link_others_but(job, from, to, &[])
}

/// [`link_others`] without the files `but`.
pub(crate) fn link_others_but(job: &Job, from: &Path, to: &str, but: &[&str]) -> Result<(), StageError> {
    for entry in std::fs::read_dir(from).map_err(StageError::io(from))? {
        let entry = entry.map_err(StageError::io(from))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let weights = [
            ".safetensors",
            ".safetensors.index.json",
            ".gguf",
            ".bin",
            ".bin.index.json",
            ".pt",
            ".pth",
            ".ckpt",
            "tensor-cache.json",
            "ndarray-cache.json",
            "mlc-chat-config.json",
            // The same weights, or those of the base, for other programs.
            ".h5",
            ".msgpack",
            ".onnx",
            ".onnx_data",
            ".ot",
            // Of the model that this one was made from.
            "README.md",
            // Of an adapter, which is not in a model's folder.
            "adapter_config.json",
        ]
        .iter()
        .any(|end| text.ends_with(end));
        if entry.path().is_file() && !weights && !but.contains(&&*text) && !job.output().join(to).join(&name).exists() {
            job.link_into_output(&entry.path(), Path::new(to).join(&name))?;
        }
    }
    Ok(())
}

/// Links all files of a folder.
fn link_folder(job: &Job, from: &Path, to: &str) -> Result<(), StageError> {
    for entry in std::fs::read_dir(from).map_err(StageError::io(from))? {
        let entry = entry.map_err(StageError::io(from))?;
        if entry.path().is_file() {
            job.link_into_output(&entry.path(), Path::new(to).join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Writes the split layout: `config.json`, `mm_projector.safetensors`, `vision/` and `llm/`. A tower with a
/// folder of its own is linked; `None` writes it.
pub(crate) fn write_parts(
    job: &Job,
    model: &Imp,
    llm: Option<&Path>,
    vision: Option<&Path>,
    tokenizer: &Path,
) -> Result<(), StageError> {
    let out = job.output();
    let failed = |error: ModelError| model_error(job, &error);
    for name in ["llm", "vision"] {
        let folder = out.join(name);
        std::fs::create_dir_all(&folder).map_err(StageError::io(&folder))?;
    }
    save::split_config(model, &out).map_err(failed)?;
    save::projector(model, &out).map_err(failed)?;
    match vision {
        Some(folder) => link_folder(job, folder, "vision")?,
        None => save::vision(model, &out.join("vision")).map_err(failed)?,
    }
    if let Some(folder) = llm {
        return link_folder(job, folder, "llm");
    }
    save::language_model(model, &out.join("llm")).map_err(failed)?;
    link_others(job, tokenizer, "llm")
}

/// The folder of a model's tokenizer.
pub(crate) fn tokenizer_folder(model: &Path) -> PathBuf {
    // Merged models have it beside the weights, training stages keep the language model's folder.
    let nested = model.join("llm");
    if !model.join("tokenizer.json").is_file() && nested.is_dir() { nested } else { model.to_path_buf() }
}

/// The outlook of an existing folder. What can't be read is left out: the stage that uses it will report why.
pub fn outlook(folder: &Path) -> Outlook {
    if folder.join("index.bin").is_file() {
        return Outlook { records: Some(Records::There(folder.to_path_buf())), ..Outlook::default() };
    }
    let Ok(file) = ConfigFile::read(folder) else { return Outlook::default() };
    let bytes = weight_bytes(folder);
    if file.kind() == ModelKind::SplitImp {
        let part = |name: &str| outlook(&folder.join(name));
        let adapted = folder.join("adapter").is_dir();
        return Outlook {
            llm: part("llm").llm,
            vision: part("vision").vision,
            joined: file.imp().ok(),
            adapted,
            records: None,
        };
    }
    outlook_of_config(&file, bytes)
}

/// The outlook of a model in one folder, from its `config.json` and the size of its weights' files.
pub(crate) fn outlook_of_config(file: &ConfigFile, bytes: u64) -> Outlook {
    if file.kind() == ModelKind::Imp {
        // One file holds both; it is counted once.
        let vision = file.vision().ok().map(|config| Tower { config, bytes: 0 });
        let llm = file.language().ok().map(|config| Tower { config, bytes });
        return Outlook { llm, vision, joined: file.imp().ok(), ..Outlook::default() };
    }
    if file.kind() == ModelKind::Vision {
        // A SigLIP's file may hold a text tower, too, which is not read.
        let tower = |config: VisionConfig| {
            let largest = 4 * config.parameters() as u64;
            Tower { config, bytes: bytes.min(largest) }
        };
        return Outlook { vision: file.vision().ok().map(tower), ..Outlook::default() };
    }
    Outlook::of_language_model(file.language().ok(), bytes)
}

fn weight_bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let weights = entries.filter(|entry| weights::is_weights(&entry.file_name().to_string_lossy()));
    weights.filter_map(|entry| std::fs::metadata(entry.path()).ok()).map(|data| data.len()).sum()
}
