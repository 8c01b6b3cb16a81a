//! Which model `ask`, `chat` and `serve` mean: a folder, or a stage of a pipeline that made one.

use std::path::{Component, Path, PathBuf};

use imp_stages::ask;

use super::session::{Session, never_ran, settings, usage};
use crate::{
    cli::{AnswerArgs, Common, Overrides, TargetArgs},
    failure::Failure,
    pipeline::Diagnostic,
    report,
    scheduler::Verdict,
    store::look_up,
};

/// The kinds of stages whose artifact is a model that can be asked.
const KINDS: [&str; 3] = ["finetune", "merge", "quantize"];

/// A model that was found.
pub(super) struct Model {
    /// The folder, or `model.gguf` in it.
    pub(super) path: PathBuf,
    /// The name of the stage, or else of the folder.
    pub(super) name: String,
}

/// Finds the model that is called `given`: a folder, `model.gguf` in one, the path of a link below the folder of artifacts
/// (`PIPELINE/STAGE`), or the name of a stage in the pipeline that ran last.
pub(super) fn find(given: &Path, common: &Common) -> Result<Model, Failure> {
    let error = match ask::folder(given) {
        Ok(folder) => return Ok(Model { path: given.to_path_buf(), name: name_of(folder) }),
        Err(error) => error,
    };
    let parts: Vec<&str> = given
        .components()
        .map_while(|part| match part {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    // What is written as a path, or is a file, is no stage.
    let is_name = !parts.is_empty() && parts.len() == given.components().count() && !given.is_file();
    if !is_name {
        return Err(Failure::Stage(error));
    }
    let settings = settings(common)?;
    let link = settings.artifacts.join(given);
    match parts.as_slice() {
        [stage] if look_up(&settings.cache.join("VERSION")).is_ok() => of_stage(stage, given, common),
        [_, .., stage] if ask::folder(&link).is_ok() => Ok(Model { path: link, name: (*stage).to_string() }),
        [stage] => {
            let looked =
                format!("{}, and there are no runs in the cache `{}`", nothing_at(given), settings.cache.display());
            let help = format!("run a pipeline that makes `{stage}`, or give the folder of a model");
            Err(usage(Diagnostic::new(looked, None).help(help)))
        }
        _ => {
            let looked = format!("{}, and no model at `{}`", nothing_at(given), link.display());
            Err(usage(
                Diagnostic::new(looked, None).help("give a folder, or PIPELINE/STAGE of a pipeline that has run"),
            ))
        }
    }
}

/// The last part of a folder's path, as it was given if it has one.
fn name_of(folder: &Path) -> String {
    let whole = folder.file_name().is_none().then(|| folder.canonicalize().ok()).flatten();
    let name = whole.as_deref().unwrap_or(folder).file_name();
    name.map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned())
}

/// What was found instead of a model.
fn nothing_at(given: &Path) -> String {
    let path = given.display();
    if given.exists() {
        format!("the folder `{path}` is no model (it has no config.json)")
    } else {
        format!("there is no folder `{path}` here")
    }
}

/// The model of a stage in the pipeline that ran last.
fn of_stage(name: &str, given: &Path, common: &Common) -> Result<Model, Failure> {
    let session = Session::of_target(&TargetArgs { file: None, set: Overrides::default() }, common)?;
    let found: Vec<usize> = session.pipeline.named(name).collect();
    let link = |index: &usize| session.artifacts.of(&session.pipeline, &session.pipeline.stages[*index]);
    let file = session.request.file.display();
    let index = match found.as_slice() {
        [index] => *index,
        [] => {
            let makers = session.pipeline.stages.iter().filter(|stage| KINDS.contains(&stage.kind));
            let known: Vec<&str> = makers.map(|stage| stage.owners[0].1.as_str()).collect();
            let problem = Diagnostic::new(
                format!("`{}` is neither the folder of a model here nor a stage in {file}", given.display()),
                None,
            );
            return Err(usage(problem.suggest(name, known)));
        }
        several => {
            let problem = Diagnostic::new(format!("`{name}` is a stage of {} points in {file}", several.len()), None);
            return Err(usage(
                problem.help(format!("give the artifact of one, as in {}", link(&several[0]).display())),
            ));
        }
    };
    let stage = &session.pipeline.stages[index];
    let verdict = session.verdict(index)?;
    let Some(receipt) = session.receipt(index, &verdict)? else { return Err(never_ran(name)) };
    if !matches!(verdict, Verdict::Hit { .. }) {
        let text = format!("note: {name} has not run with its present configuration; this is its last result");
        report::note(&text, common.style());
    }
    let (folder, mended) = session.store.tree_folder(receipt.output.digest)?.into_parts();
    if let Some(mended) = mended {
        report::note(&format!("note: the artifact of {name} was changed: {mended}"), common.style());
    }
    let Some(folder) = folder else {
        let problem = Diagnostic::new(format!("the artifact of {name} is lost"), None);
        return Err(usage(problem.help(format!("make it again: imp-flow run {file}"))));
    };
    if ask::folder(&folder).is_err() {
        let problem =
            Diagnostic::new(format!("the stage `{name}` of the kind {} makes no model to talk to", stage.kind), None);
        return Err(usage(problem.help(format!("name a stage of the kind {}", KINDS.join(", ")))));
    }
    // Messages name the link, if it leads there.
    let link = link(&index);
    let leads_there = link.canonicalize().ok().is_some_and(|to| folder.canonicalize().is_ok_and(|folder| folder == to));
    Ok(Model { path: if leads_there { link } else { folder }, name: name.to_string() })
}

impl AnswerArgs {
    /// Refuses values that mean nothing.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let wrong = |message: &str| Err(usage(Diagnostic::new(message, None)));
        if !(0.0..=100.0).contains(&self.temperature) {
            return wrong("--temperature must be between 0 and 100");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("--top-p must be above 0 and at most 1");
        }
        Ok(())
    }
}
