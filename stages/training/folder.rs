//! Model folders that training stages write: parts that did not change are linked, not copied.

use std::path::Path;

use imp_model::{Imp, ModelError, save};

use crate::{
    Job, StageError,
    preprocess::{Mixture, RecordSet},
};

/// A model's error, in terms of the files that the person knows.
pub(crate) fn model_error(job: &Job, error: &ModelError) -> StageError {
    if let ModelError::Io { file, source } = error
        && source.kind() == std::io::ErrorKind::StorageFull
    {
        return StageError::failed(
            format!("{}: {source}", file.display()),
            "make room on the disk, then run the same command again",
        );
    }
    StageError::input(
        job.named(error.path()),
        error.message(),
        "check that this is the model you meant, and that its files are whole",
    )
}

/// Opens the records of the inputs `data`.
pub(crate) fn open_records(job: &Job, weights: &[f64]) -> Result<Mixture, StageError> {
    Mixture::new(job.inputs("data").map(|folder| open(job, folder)).collect::<Result<_, _>>()?, weights)
}

/// Opens the held-out records of the input `validation`, if the pipeline gives it.
pub(crate) fn open_validation(job: &Job) -> Result<Option<Mixture>, StageError> {
    job.optional_input("validation").map(|folder| Mixture::new(vec![open(job, folder)?], &[])).transpose()
}

fn open(job: &Job, folder: &Path) -> Result<RecordSet, StageError> {
    RecordSet::open(folder).map_err(|error| match error {
        StageError::Input { file, line, message, help } => {
            StageError::Input { file: job.named(&file), line, message, help }
        }
        other => other,
    })
}

/// Links the files of `from` that are no weights into the folder `to` of the output: tokenizer, configuration.
/// Files that are there already are left alone.
pub(crate) fn link_others(job: &Job, from: &Path, to: &str) -> Result<(), StageError> {
    for entry in std::fs::read_dir(from).map_err(StageError::io(from))? {
        let entry = entry.map_err(StageError::io(from))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let weights = text.ends_with(".safetensors") || text.ends_with(".safetensors.index.json");
        if entry.path().is_file() && !weights && !job.output().join(to).join(&name).exists() {
            job.link_into_output(&entry.path(), Path::new(to).join(&name))?;
        }
    }
    Ok(())
}

/// Links a folder as it is.
fn link_folder(job: &Job, from: &Path, to: &str) -> Result<(), StageError> {
    for entry in std::fs::read_dir(from).map_err(StageError::io(from))? {
        let entry = entry.map_err(StageError::io(from))?;
        if entry.path().is_file() {
            job.link_into_output(&entry.path(), Path::new(to).join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Writes the split layout: `config.json`, `mm_projector.safetensors`, `vision/` and `llm/`. A tower that comes as a
/// folder of its own is linked; `None` means that it must be written.
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
